"""What every family of networks offers. B batch, Z latent; an event is whatever one image is shaped like."""

from typing import NamedTuple

from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""


class Judgement(NamedTuple):
    """What D says of a batch."""

    logits_B: Tensor
    features: tuple[Tensor, ...]
    """Each hidden layer's output before normalisation and activation, first layer first; (B, ...)."""


class EncoderNetwork(nn.Module):
    """q(z|x) = N(mean, exp(log_var)): forward(x) -> (mean_BZ, log_var_BZ)."""


class DecoderNetwork(nn.Module):
    """p(x|z): forward(z) -> sigmoid(logits(z))."""

    latent_size: int

    def logits(self, z_BZ: Tensor) -> Tensor:
        """The raw output, (B, maps * C, H, W); `vaegan.likelihood` says what it means."""
        raise NotImplementedError


class DiscriminatorNetwork(nn.Module):
    """D(x): forward(x) -> the probability that x is real, (B, 1)."""

    def judge(self, x: Tensor) -> Judgement:
        """Logits and features of a batch; losses use these, since a sigmoid saturates."""
        raise NotImplementedError


class Networks(NamedTuple):
    """The three networks of a VAE-GAN."""

    encoder: EncoderNetwork
    decoder: DecoderNetwork
    discriminator: DiscriminatorNetwork
