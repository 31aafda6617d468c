"""A picture of what a model can do: samples, and with a data set reconstructions and interpolations."""

from pathlib import Path

import torch
from PIL import Image

from pipeline.data import manifest as manifests
from pipeline.data.batches import first_images
from pipeline.errors import Mistake
from pipeline.evaluation import pictures
from pipeline.references import find, is_model
from pipeline.training import checkpoints
from vaegan import Autoencoder

COLUMNS = 8


def sample_to(ref: str, home: Path, out: Path, count: int, seed: int, data: str | None) -> None:
    """Draw `count` samples of the model that a REF names into a PNG. Raises Mistake."""
    if count < 1:
        raise Mistake(f"--count is {count}; expected a number of samples >= 1")
    autoencoder = _load(ref, home)
    parts = [pictures.grid(pictures.samples(autoencoder, count, seed), COLUMNS)]
    if data is not None:
        originals = _originals(data)
        parts.append(pictures.grid(pictures.reconstructions(autoencoder, originals, COLUMNS), COLUMNS))
        parts.append(pictures.grid(pictures.interpolation(autoencoder, originals[:8], COLUMNS), COLUMNS))
    try:
        pictures.save(_stacked(parts), out)
    except OSError as error:
        raise Mistake(f"--out is {str(out)!r}: {error.strerror or error}") from None
    what = "samples" if data is None else "samples; originals above reconstructions; interpolations"
    print(f"{out}: {what}")


def _load(ref: str, home: Path) -> Autoencoder:
    if is_model(ref):
        from pipeline.registry.load import load

        return load(ref, home)
    return checkpoints.load_average(find(ref, home).checkpoint.path)[0]


def _originals(data: str) -> torch.Tensor:
    manifest = manifests.load(data)
    split = "test" if "test" in manifest.splits else next(iter(manifest.splits))
    return first_images(data, manifest, split, 2 * COLUMNS).float() / 255


def _stacked(parts: list[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures below each other."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    canvas = Image.new(parts[0].mode, (max(part.width for part in parts), height), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height + gap
    return canvas
