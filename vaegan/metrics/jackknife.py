"""How far a figure would be off on other draws, for figures of which no formula says."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import fmean


def jackknife(figure: Callable[[Sequence[int]], float], parts: int) -> float:
    """Standard error of a figure of `parts` equal parts together, none of them empty.

    figure: of the parts with these numbers.
    """
    return standard_error([figure([part for part in range(parts) if part != gone]) for gone in range(parts)])


def standard_error(without: Sequence[float]) -> float:
    """That of a figure, by what it is without each of R equal parts: sqrt((R - 1) / R sum_r (f_-r - mean f_-r)^2).

    Each part is left out once, so that every figure rests on almost as many images as the whole, and has almost its
    bias (Tukey 1958; by groups, Miller 1974).
    """
    mean, parts = fmean(without), len(without)
    return sqrt((parts - 1) / parts * sum((value - mean) ** 2 for value in without))
