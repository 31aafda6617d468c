"""Pictures that people look at: grids of images as PNG. N images, C channels, S side."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vaegan import Autoencoder

CELL = 64
"""Images are enlarged to at least so many pixels a side, without smoothing."""


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
    shown = autoencoder.reconstruct(originals.to(next(autoencoder.parameters()).device)).cpu()
    pairs = zip(originals.cpu().split(columns), shown.split(columns), strict=True)
    return torch.cat([row for pair in pairs for row in pair])


@torch.no_grad()
def interpolation(autoencoder: Autoencoder, originals: Tensor, steps: int = 8) -> Tensor:
    """A row for each two originals in turn: the way from one to the other through the latent space."""
    rows = [autoencoder.interpolate(a, b, steps) for a, b in zip(originals[::2], originals[1::2], strict=True)]
    return torch.cat(rows).cpu()


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    picture.save(temporary, format="PNG")
    return temporary.replace(path)
