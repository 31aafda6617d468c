"""Peak signal-to-noise ratio of reconstructions. B batch."""

import torch
from torch import Tensor


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """10 log10(1 / mean squared error) of each image, decibels, (B,); pixels in [0, 1]. 100 dB where they are equal."""
    error_B = (images - reconstructions).square().flatten(1).mean(1)
    return -10 * torch.log10(error_B.clamp(min=1e-10))
