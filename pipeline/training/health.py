"""Signs that a run has gone wrong. T terms, S steps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def not_finite(networks: Mapping[str, nn.Module]) -> str:
    """The first network with a weight that is NaN or infinite, or nothing."""
    for name, network in networks.items():
        if not all(torch.isfinite(weight).all() for weight in network.parameters()):
            return name
    return ""


def first_not_finite(names: Sequence[str], means_ST: Tensor) -> tuple[int, str] | None:
    """The first step, counted from 0, with a term that is NaN or infinite, and that term's name."""
    bad_ST = ~torch.isfinite(means_ST)
    if not bad_ST.any():
        return None
    step, term = bad_ST.nonzero()[0].tolist()
    return step, names[term]
