"""A picture of what a model can do: samples, and with a data set reconstructions and interpolations."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from pipeline.data import manifest as manifests
from pipeline.data.batches import first_images
from pipeline.errors import Mistake
from pipeline.evaluation import pictures
from pipeline.references import find, is_model
from pipeline.training import checkpoints
from vaegan import Autoencoder
from vaegan.networks.ports import Shape

COLUMNS, TITLE = 8, 20


def sample_to(ref: str, home: Path, out: Path, count: int, seed: int, data: str | None) -> None:
    """Draw `count` samples of the model that a REF names into a PNG. Raises Mistake."""
    if count < 1:
        raise Mistake(f"--count is {count}; expected a number of samples >= 1")
    autoencoder, shape = _load(ref, home)
    picture, told = _titled("samples", pictures.samples(autoencoder, count, seed)), [f"{count} samples"]
    if data is not None:
        originals = _originals(data, shape)
        shown = pictures.reconstructions(autoencoder, originals, COLUMNS)
        right = [_titled("originals, and below each its reconstruction", shown)]
        told.append("reconstructions")
        if len(originals) > 1:
            between = pictures.interpolation(autoencoder, originals[: min(6, len(originals) // 2 * 2)], COLUMNS)
            right.append(_titled("interpolations", between))
            told.append("interpolations")
        picture = pictures.joined([picture, pictures.joined(right, down=True)])
    try:
        pictures.save(picture, out)
    except OSError as error:
        raise Mistake(f"--out is {str(out)!r}: {error.strerror or error}") from None
    print(f"{out}: {', '.join(told)}")


def _load(ref: str, home: Path) -> tuple[Autoencoder, Shape]:
    if is_model(ref):
        from pipeline.registry.load import load

        return load(ref, home)
    autoencoder, description = checkpoints.load_average(find(ref, home).checkpoint.path)
    return autoencoder, description.shape


def _originals(data: str, shape: Shape) -> torch.Tensor:
    manifest = manifests.load(data)
    if manifest.shape != shape:
        raise Mistake(f"--data {data!r} has images of {manifest.shape}; the model's are {shape}")
    split = "test" if "test" in manifest.splits else next(iter(manifest.splits))
    return first_images(data, manifest, split, 2 * COLUMNS).float() / 255


def _titled(title: str, images: torch.Tensor) -> Image.Image:
    """A grid with a line of text above."""
    picture = pictures.grid(images, COLUMNS)
    canvas = Image.new(picture.mode, (picture.width, picture.height + TITLE), "white")
    ImageDraw.Draw(canvas).text((2, 2), title, fill="black", font_size=TITLE - 6)
    canvas.paste(picture, (0, TITLE))
    return canvas
