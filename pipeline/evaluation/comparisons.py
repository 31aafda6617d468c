"""Figures that compare two sets of images by their features. N real rows, M fake rows, F features, K columns."""

from collections.abc import Callable, Sequence
from math import ceil, nan
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pipeline.evaluation import estimate
from pipeline.evaluation.estimate import Estimate
from vaegan.metrics.jackknife import jackknife, standard_error
from vaegan.metrics.kernel import kernel_distances
from vaegan.metrics.moments import Moments, distance_from, diversity, merged
from vaegan.metrics.neighbours import neighbours

T = TypeVar("T")
PARTS = 10
"""Of the fakes, each left out once to tell a figure's noise."""
BLOCK = 1_000
"""Rows that a kernel distance compares at a time."""


class Comparison(NamedTuple):
    """Some figures that are found together."""

    kinds: tuple[str, ...]
    """What its figures are called by."""
    called: str
    """The beginning of a sentence that ends with a number of images."""
    least: int
    """Images a side."""
    most: int | None
    """Images a side that are looked at, the first so many; None for all."""
    estimates: Callable[[Tensor, Tensor], tuple[Estimate, ...]]
    """One of each kind, of real_NF and fake_MF."""


def _frechet(real_NF: Tensor, fake_MF: Tensor) -> tuple[Estimate, Estimate]:
    real, *parts = map(_moments, (real_NF, *fake_MF.tensor_split(PARTS)))
    from_real = distance_from(real)
    distance = _estimate(lambda kept: from_real(merged(kept)), parts, len(fake_MF))
    return distance, Estimate(diversity(real, merged(parts)))


def _estimate(figure: Callable[[Sequence[T]], float], parts: Sequence[T], fakes: int) -> Estimate:
    """Of all parts of the fakes, with the noise that leaving one out shows where no part is too small for that."""
    enough = fakes >= 2 * PARTS
    noise = jackknife(lambda kept: figure([parts[part] for part in kept]), PARTS) if enough else nan
    return Estimate(figure(parts), noise)


def _moments(rows_NF: Tensor) -> Moments:
    moments = Moments(rows_NF.shape[1], rows_NF.device)
    moments.update(rows_NF)
    return moments


def _kernel(real_NF: Tensor, fake_MF: Tensor) -> tuple[Estimate]:
    half = ceil(min(len(real_NF), len(fake_MF)) / 2)
    return (estimate.mean(kernel_distances(real_NF, fake_MF, min(BLOCK, half))),)  # one block would tell no noise


def _neighbours(real_NF: Tensor, fake_MF: Tensor) -> tuple[Estimate, ...]:
    whole, *without = neighbours(real_NF, fake_MF, PARTS)  # noise of recall and coverage near 1: up to twice too much
    return tuple(Estimate(*pair) for pair in zip(whole, map(standard_error, zip(*without, strict=True)), strict=True))


COMPARISONS = (
    Comparison(("fd", "diversity"), "a Frechet distance takes", 2, None, _frechet),
    Comparison(("kd",), "a kernel distance takes", BLOCK, None, _kernel),
    # every row is compared with every other: 5,000 take a quarter of the time of 10,000
    Comparison(
        ("precision", "recall", "density", "coverage", "spacing"), "precision and recall take", 100, 5_000, _neighbours
    ),
)


def class_coverage(real_NK: Tensor, fake_MK: Tensor, heads: tuple[int, ...]) -> Estimate:
    """1 - total variation between the shares that classes have among reals and fakes, mean over columns.

    1: every class is drawn as often as it is found; 0: nothing drawn is of a class that is found. heads: classes of
    each column.
    """
    real = [_shares(real_N, classes) for real_N, classes in zip(real_NK.T, heads, strict=True)]

    def overlap(parts: Sequence[Tensor]) -> float:
        fake = [_shares(fake_M, classes) for fake_M, classes in zip(torch.cat(list(parts)).T, heads, strict=True)]
        return float(torch.stack([torch.minimum(a, b).sum() for a, b in zip(real, fake, strict=True)]).mean())

    return _estimate(overlap, fake_MK.tensor_split(PARTS), len(fake_MK))


def _shares(labels_N: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels_N, minlength=classes).double() / len(labels_N)
