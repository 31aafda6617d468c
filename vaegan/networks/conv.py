"""Convolutional networks in the layout of Larsen et al. 2016 (arXiv 1512.09300), for 32, 64 and 128 px.

Channel counts below are Larsen's for 64 px, where the encoder's first layer has 64; `width` scales them all. His tanh
on [-1, 1] is our sigmoid on [0, 1], since tanh(a / 2) = 2 sigmoid(a) - 1; inputs are centred on their way in.
B batch, C channels, S side, Z latent.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaegan import config
from vaegan.networks.ports import DecoderNetwork, DiscriminatorNetwork, EncoderNetwork, Judgement, Networks, Shape


class Layout(NamedTuple):
    """Channels of the stride-2 layers of each network, outermost first."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    discriminator: tuple[int, ...]


LAYOUTS = {
    32: Layout((64, 128, 256), (256, 128, 32), (128, 192, 256)),
    64: Layout((64, 128, 256), (256, 128, 32), (128, 256, 256)),
    128: Layout((64, 128, 256, 256), (256, 256, 128, 32), (128, 256, 256, 256)),
}
STEM, ENCODER_HIDDEN, DISCRIMINATOR_HIDDEN = 32, 1024, 512


class Block(nn.Module):
    """A 5x5 convolution, then normalisation and ReLU kept apart: Larsen's features are read between the two."""

    def __init__(self, convolution: nn.Module, channels: int, norm: str) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.GroupNorm(_groups(channels), channels) if norm == "group" else nn.Identity()

    def activate(self, before: Tensor) -> Tensor:
        return torch.relu(self.norm(before))

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.convolution(x))


class Encoder(EncoderNetwork):
    """x_BCSS -> (mean_BZ, log_var_BZ)."""

    def __init__(self, shape: Shape, widths: tuple[int, ...], hidden: int, latent: int, norm: str) -> None:
        super().__init__()
        channels = (shape[0], *widths)
        self.blocks = nn.Sequential(*(_down(a, b, norm) for a, b in zip(channels, widths, strict=False)))
        self.fc1 = nn.Linear(widths[-1] * _innermost(shape, widths) ** 2, hidden)
        self.fc_mean = nn.Linear(hidden, latent)
        self.fc_var = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = 2 * x - 1
        for block in self.blocks:
            hidden = self.through(block, hidden)
        hidden_BH = torch.relu(self.fc1(hidden.flatten(1)))
        return self.fc_mean(hidden_BH), self.fc_var(hidden_BH)


class Decoder(DecoderNetwork):
    """z_BZ -> image in [0, 1], (B, C, S, S)."""

    def __init__(self, shape: Shape, widths: tuple[int, ...], latent: int, norm: str, maps: int) -> None:
        super().__init__()
        side = _innermost(shape, widths)
        self.latent_size = latent
        self.innermost = (widths[0], side, side)
        self.fc1 = nn.Linear(latent, widths[0] * side**2)
        channels = (widths[0], *widths)
        self.blocks = nn.Sequential(*(_up(a, b, norm) for a, b in zip(channels, widths, strict=False)))
        self.last = nn.Conv2d(widths[-1], maps * shape[0], 5, padding=2)

    def logits(self, z_BZ: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(z_BZ)).unflatten(1, self.innermost)
        for block in self.blocks:
            hidden = self.through(block, hidden)
        return self.last(hidden)

    def forward(self, z_BZ: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z_BZ))


class Discriminator(DiscriminatorNetwork):
    """x_BCSS -> probability of being real, (B, 1). Its features are the stride-2 convolutions' outputs."""

    def __init__(self, shape: Shape, stem: int, widths: tuple[int, ...], hidden: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape[0], stem, 5, padding=2)
        channels = (stem, *widths)
        self.blocks = nn.ModuleList(_down(a, b, norm) for a, b in zip(channels, widths, strict=False))
        self.fc1 = nn.Linear(widths[-1] * _innermost(shape, widths) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, 1)

    def judge(self, x: Tensor) -> Judgement:
        features = []
        before: Tensor = self.stem(2 * x - 1)
        activate: Callable[[Tensor], Tensor] = torch.relu
        for block in self.blocks:
            assert isinstance(block, Block)
            before = self.through(partial(_next, activate, block.convolution), before)
            features.append(before)
            activate = block.activate
        hidden = torch.relu(self.fc1(activate(before).flatten(1)))
        return Judgement(self.fc2(hidden).squeeze(1), tuple(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.judge(x).logits_B).unsqueeze(1)


def build(settings: config.Networks, shape: Shape, maps: int) -> Networks:
    """Larsen's three. Raises ValueError for an image that is not square or of a side without a layout."""
    _, height, width = shape
    if height != width or height not in LAYOUTS:
        raise ValueError(
            f"networks.family 'conv' takes images of {', '.join(map(str, LAYOUTS))} px, not {height} x {width}; "
            "prepare the data with --size 32 (or 64, 128), or set networks.family=mlp networks.norm=none"
        )
    layout = LAYOUTS[height]
    encoder, decoder, discriminator = (_scaled(widths, settings.width) for widths in layout)
    (stem, encoder_hidden, hidden) = _scaled((STEM, ENCODER_HIDDEN, DISCRIMINATOR_HIDDEN), settings.width)
    return Networks(
        Encoder(shape, encoder, encoder_hidden, settings.latent, settings.norm),
        Decoder(shape, decoder, settings.latent, settings.norm, maps),
        Discriminator(shape, stem, discriminator, hidden, settings.norm),
    )


def _scaled(widths: tuple[int, ...], width: int) -> tuple[int, ...]:
    return tuple(channels * width // 64 for channels in widths)


def _innermost(shape: Shape, widths: tuple[int, ...]) -> int:
    return shape[1] // 2 ** len(widths)


def _groups(channels: int) -> int:
    # one channel a group would make the convolution's bias a weight without a gradient
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0 and channels // groups > 1)


def _next(activate: Callable[[Tensor], Tensor], convolution: nn.Module, before: Tensor) -> Tensor:
    """From one layer's output before activation to that of the next."""
    after: Tensor = convolution(activate(before))
    return after


def _down(before: int, after: int, norm: str) -> Block:
    return Block(nn.Conv2d(before, after, 5, stride=2, padding=2), after, norm)


def _up(before: int, after: int, norm: str) -> Block:
    return Block(nn.ConvTranspose2d(before, after, 5, stride=2, padding=2, output_padding=1), after, norm)
