"""What every family of networks offers. B batch, Z latent; an event is whatever one image is shaped like."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""


class Judgement(NamedTuple):
    """What D says of a batch."""

    logits_B: Tensor
    features: tuple[Tensor, ...]
    """Each hidden layer's output before normalisation and activation, first layer first; (B, ...)."""


class Network(nn.Module):
    """What the three have in common."""

    recompute = False
    """Keep what goes into each layer alone and compute the rest again in the backward (Chen et al. 2016, arXiv
    1604.06174): about a third of the memory for a third more time. For large images."""

    def through(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """layer(x), its inside forgotten where the network recomputes."""
        if not (self.recompute and torch.is_grad_enabled()):
            return layer(x)
        passed: Tensor = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
        return passed


class EncoderNetwork(Network):
    """q(z|x) = N(mean, exp(log_var)): forward(x) -> (mean_BZ, log_var_BZ)."""


class DecoderNetwork(Network):
    """p(x|z): forward(z) -> sigmoid(logits(z))."""

    latent_size: int

    def logits(self, z_BZ: Tensor) -> Tensor:
        """The raw output, (B, maps * C, H, W); `vaegan.likelihood` says what it means."""
        raise NotImplementedError


class DiscriminatorNetwork(Network):
    """D(x): forward(x) -> the probability that x is real, (B, 1)."""

    def judge(self, x: Tensor) -> Judgement:
        """Logits and features of a batch; losses use these, since a sigmoid saturates."""
        raise NotImplementedError


class Networks(NamedTuple):
    """The three networks of a VAE-GAN."""

    encoder: EncoderNetwork
    decoder: DecoderNetwork
    discriminator: DiscriminatorNetwork
