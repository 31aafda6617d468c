"""How alike reconstructions are to their originals: torchmetrics' measures beside ours. B batch, C, H, W."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from math import log2
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights

from vaegan.metrics.psnr import psnr
from vaegan.networks.ports import Shape

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of scales from fine to coarse, each half the size of the one before (Wang et al. 2003, section 3.2)."""


class Measure(NamedTuple):
    """Images and their reconstructions, both (B, C, H, W) in [0, 1], to a figure for each, (B,)."""

    of: Callable[[Tensor, Tensor], Tensor]
    weights: str | None = None
    """sha256 of what it has learnt."""


def measures(shape: Shape, device: torch.device) -> dict[str, Measure]:
    """By name, those that images of this shape and the weights on this machine allow; none is ever downloaded.

    psnr always; ssim (Wang et al. 2004) from 11 px, its window; ms_ssim (Wang et al. 2003) from 64 px; lpips (Zhang et
    al. 2018, arXiv 1801.03924) from 32 px, grey images as RGB, where torchvision's AlexNet is at hand.
    """
    side = min(shape[1:])
    found = {"psnr": Measure(psnr)}
    if side >= 11:
        found["ssim"] = Measure(_ssim)
    if side >= 64:
        found["ms_ssim"] = Measure(partial(_ms_ssim, _scales(side)))
    if side >= 32 and alexnet().exists():
        network = LearnedPerceptualImagePatchSimilarity("alex").net.to(device)
        found["lpips"] = Measure(partial(_lpips, network), sha256(alexnet().read_bytes()).hexdigest())
    return found


def alexnet() -> Path:
    """Where torchvision keeps AlexNet's weights, if it has them: below TORCH_HOME."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(AlexNet_Weights.DEFAULT.url).name)


def _ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    return structural_similarity_index_measure(reconstructions, images, data_range=1.0, reduction="none")


def _ms_ssim(scales: tuple[float, ...], images: Tensor, reconstructions: Tensor) -> Tensor:
    return multiscale_structural_similarity_index_measure(
        reconstructions, images, data_range=1.0, betas=scales, reduction="none"
    )


def _scales(side: int) -> tuple[float, ...]:
    """As many of the five, fine ones first, as leave 16 px to the coarsest: three at 64 px. They sum to 1 again."""
    weights = SCALES[: int(log2(side / 16)) + 1]
    return tuple(weight / sum(weights) for weight in weights)


def _lpips(network: nn.Module, images: Tensor, reconstructions: Tensor) -> Tensor:
    return network(images, reconstructions, normalize=True).flatten()  # its scales of R, G, B make grey images RGB
