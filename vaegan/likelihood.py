"""What a decoder's output means: p(x|z) as a distribution over images. B batch, then any event dimensions.

Pixels are in [0, 1] and densities are on that scale.
"""

from math import log, pi
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from vaegan import config


class Distribution(Protocol):
    """p(x|z) of a batch of codes."""

    def nats(self, x: Tensor) -> Tensor:
        """-log p(x|z), (B,), summed over the event."""
        ...

    def presented(self) -> Tensor:
        """The image shown to people and to D: the mean, in [0, 1]."""
        ...


class Gaussian(NamedTuple):
    """N(mean, exp(log_var)); log_var broadcasts over mean."""

    mean: Tensor
    log_var: Tensor

    def nats(self, x: Tensor) -> Tensor:
        squared = (x - self.mean).square() * torch.exp(-self.log_var)
        return 0.5 * (log(2 * pi) + self.log_var + squared).flatten(1).sum(1)

    def presented(self) -> Tensor:
        return self.mean


class Bernoulli(NamedTuple):
    """Each pixel an independent coin; x may be anything in [0, 1]."""

    logits: Tensor

    def nats(self, x: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(self.logits, x, reduction="none").flatten(1).sum(1)

    def presented(self) -> Tensor:
        return torch.sigmoid(self.logits)


class Likelihood(nn.Module):
    """The decoder's raw output -> Distribution. A learned global variance is a parameter of this module."""

    maps = 1
    """Numbers the decoder emits for each pixel and channel."""

    def __init__(self, settings: config.Likelihood) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, raw: Tensor) -> Distribution:
        raise NotImplementedError

    def _floored(self, raw_log_var: Tensor) -> Tensor:
        # variance = exp(raw) + floor^2: smooth, so that the gradient never vanishes at the floor
        return torch.logaddexp(raw_log_var, torch.full_like(raw_log_var, 2 * log(self.settings.floor)))


class BernoulliLikelihood(Likelihood):
    """One logit a pixel and channel."""

    def forward(self, raw: Tensor) -> Distribution:
        return Bernoulli(raw)


class FixedGaussian(Likelihood):
    """A standard deviation that nobody learns."""

    def forward(self, raw: Tensor) -> Distribution:
        return Gaussian(torch.sigmoid(raw), raw.new_full((), 2 * log(self.settings.std)))


class LearnedGaussian(Likelihood):
    """One standard deviation for all pixels (Rybkin et al. 2021, arXiv 2006.13202, learned by gradient)."""

    def __init__(self, settings: config.Likelihood) -> None:
        super().__init__(settings)
        self.log_var = nn.Parameter(torch.tensor(2 * log(settings.std)))

    def forward(self, raw: Tensor) -> Distribution:
        return Gaussian(torch.sigmoid(raw), self._floored(self.log_var))


class PerPixelGaussian(Likelihood):
    """The decoder's second half of channels is log(variance / std^2)."""

    maps = 2

    def forward(self, raw: Tensor) -> Distribution:
        mean, log_var = raw.chunk(2, dim=1)
        return Gaussian(torch.sigmoid(mean), self._floored(log_var + 2 * log(self.settings.std)))


LIKELIHOODS: dict[tuple[str, str], type[Likelihood]] = {
    ("bernoulli", "fixed"): BernoulliLikelihood,
    ("gaussian", "fixed"): FixedGaussian,
    ("gaussian", "learned"): LearnedGaussian,
    ("gaussian", "per-pixel"): PerPixelGaussian,
}


def build(settings: config.Likelihood) -> Likelihood:
    """The likelihood that the settings name."""
    return LIKELIHOODS[settings.kind, settings.variance](settings)
