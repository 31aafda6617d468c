"""Pictures that people look at: grids of images as PNG. N images, C channels, S side, Z latent, F features."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.evaluation.plots import blank, rendered
from vaegan import Autoencoder
from vaegan.objective import kl_of_units

CELL = 64
"""Images are enlarged to at least so many pixels a side, without smoothing."""
GAP = 12
"""Pixels between pictures that are joined."""
BLOCK = 4_096
"""Training images compared at a time."""


@torch.no_grad()
def pictures_of(
    autoencoder: Autoencoder, held_out: Tensor, training_images: Tensor, seed: int
) -> dict[str, Image.Image]:
    """Every picture of a model by name; images are (N, C, S, S) uint8, and 256 of the held-out ones are looked at.

    There are no neighbours where there are no training images, and no interpolations where there is one held-out image.
    """
    originals = unit(held_out[:256])
    drawn = samples(autoencoder, 64, seed)
    pairs = originals[: min(16, len(originals) // 2 * 2)]
    units_Z = most_active(autoencoder, originals)
    learnt_by_heart = {"neighbours": neighbours(drawn, training_images)} if len(training_images) else {}
    return {
        "samples": grid(drawn, 8),
        "reconstructions": grid(reconstructions(autoencoder, originals[:32]), 8),
        **({"interpolations": grid(interpolation(autoencoder, pairs), 8)} if len(pairs) else {}),
        "traversals": grid(traversal(autoencoder, originals[0], units_Z[:10], steps=9), 9),
        "units": units(autoencoder, originals),
    } | learnt_by_heart


def unit(images: Tensor) -> Tensor:
    """uint8 -> [0, 1]."""
    return images.float() / 255


def grid(images: Tensor, columns: int) -> Image.Image:
    """(N, C, S, S) in [0, 1] -> one picture, row by row, thin white lines between; the last row may be short."""
    scale = max(1, CELL // images.shape[-1])
    images = images.detach().float().cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    images = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    rows = [torch.cat(list(row), dim=-1) for row in images.split(columns)]
    pixels = (torch.cat(rows, dim=-2) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels))


@torch.no_grad()
def samples(autoencoder: Autoencoder, count: int, seed: int) -> Tensor:
    """Draws from the prior, (count, C, S, S); a seed means the same codes for every model of a latent size."""
    return autoencoder.sample(count, torch.Generator().manual_seed(seed)).cpu()


@torch.no_grad()
def reconstructions(autoencoder: Autoencoder, originals: Tensor, columns: int = 8) -> Tensor:
    """Rows of originals in [0, 1], each above the row of their reconstructions."""
    shown = autoencoder.reconstruct(originals.to(_device(autoencoder))).cpu()
    pairs = zip(originals.cpu().split(columns), shown.split(columns), strict=True)
    return torch.cat([row for pair in pairs for row in pair])


@torch.no_grad()
def interpolation(autoencoder: Autoencoder, originals: Tensor, steps: int = 8) -> Tensor:
    """A row for each two originals in turn: the way from one to the other through the latent space."""
    originals = originals.to(_device(autoencoder))
    rows = [autoencoder.interpolate(a, b, steps) for a, b in zip(originals[::2], originals[1::2], strict=True)]
    return torch.cat(rows).cpu()


@torch.no_grad()
def most_active(autoencoder: Autoencoder, originals: Tensor) -> Tensor:
    """Numbers of the latent units, the most active first: by the variance of E[z|x] over images (Burda 2016), (Z,)."""
    means_NZ = autoencoder.encode(originals.to(_device(autoencoder)))
    return means_NZ.var(0, correction=0).argsort(descending=True)


@torch.no_grad()
def traversal(autoencoder: Autoencoder, original: Tensor, units_U: Tensor, steps: int) -> Tensor:
    """A row for each unit: an image's code, this unit alone moved from -3 to 3 standard deviations of the prior."""
    code_1Z = autoencoder.encode(original[None].to(_device(autoencoder)))
    codes_RZ = code_1Z.repeat(len(units_U) * steps, 1)
    along = torch.linspace(-3, 3, steps, dtype=codes_RZ.dtype, device=codes_RZ.device)
    codes_RZ[torch.arange(len(codes_RZ)), units_U.repeat_interleave(steps)] = along.repeat(len(units_U))
    return autoencoder.decode(codes_RZ).cpu()


@torch.no_grad()
def units(autoencoder: Autoencoder, originals: Tensor) -> Image.Image:
    """A bar for each latent unit, the highest first: its KL from the prior in nats, mean over images."""
    mean_NZ, log_var_NZ = autoencoder.encoder(originals.to(_device(autoencoder)))
    kl_Z = kl_of_units(mean_NZ, log_var_NZ).mean(0).sort(descending=True).values.cpu()
    figure = blank(6, 2.6)
    axes = figure.add_subplot()
    axes.bar(range(1, len(kl_Z) + 1), kl_Z.numpy())
    axes.set_title(f"KL of {len(kl_Z)} latent units, {float(kl_Z.sum()):.1f} nats together", fontsize=9)
    axes.tick_params(labelsize=7)
    return rendered(figure)


def neighbours(drawn: Tensor, training_images: Tensor, rows: int = 8, count: int = 7) -> Image.Image:
    """Whether a model has learnt by heart: the samples closest to a training image, each beside those closest to it.

    Closest first, by the Euclidean distance of pixels. drawn is in [0, 1], training_images are uint8.
    """
    blocks = (unit(block).flatten(1) for block in training_images.split(BLOCK))
    distances_NK, indices_NK = nearest(drawn.flatten(1), blocks, count)
    chosen = distances_NK[:, 0].argsort()[:rows]
    beside = unit(training_images[indices_NK[chosen].flatten()])
    return joined([grid(drawn[chosen], 1), grid(beside, indices_NK.shape[1])])


def nearest(rows_NF: Tensor, blocks: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Distances to the `count` nearest of the rows in all blocks, and their numbers, nearest first, (N, count) each."""
    distances, indices = rows_NF.new_empty(len(rows_NF), 0), torch.empty(len(rows_NF), 0, dtype=torch.long)
    start = 0
    for block_BF in blocks:
        numbers = torch.arange(start, start + len(block_BF)).expand(len(rows_NF), -1)
        distances = torch.cat([distances, torch.cdist(rows_NF, block_BF)], dim=1)
        distances, kept = distances.topk(min(count, distances.shape[1]), largest=False)
        indices = torch.cat([indices, numbers], dim=1).gather(1, kept)
        start += len(block_BF)
    return distances, indices


def joined(parts: list[Image.Image], *, down: bool = False) -> Image.Image:
    """Pictures side by side, or below each other."""
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    gaps = GAP * (len(parts) - 1)
    size = (max(widths), sum(heights) + gaps) if down else (sum(widths) + gaps, max(heights))
    canvas = Image.new(parts[0].mode, size, "white")
    along = 0
    for part in parts:
        canvas.paste(part, (0, along) if down else (along, 0))
        along += GAP + (part.height if down else part.width)
    return canvas


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    picture.save(temporary, format="PNG")
    return temporary.replace(path)


def _device(autoencoder: Autoencoder) -> torch.device:
    return next(autoencoder.parameters()).device
