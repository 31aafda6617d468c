"""Signs that a run has gone wrong. T terms, S steps."""

from collections.abc import Sequence

import torch
from torch import Tensor


def first_not_finite(names: Sequence[str], means_ST: Tensor) -> tuple[int, str] | None:
    """The first step, counted from 0, with a term that is NaN or infinite, and that term's name."""
    bad_ST = ~torch.isfinite(means_ST)
    if not bad_ST.any():
        return None
    step, term = bad_ST.nonzero()[0].tolist()
    return step, names[term]
