"""A figure and how sure it is. N images."""

from math import nan, sqrt
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A figure, and its standard error over other draws; nan where nothing is known of that."""

    value: float
    noise: float = nan


def mean(numbers_N: Tensor) -> Estimate:
    """Of one number for each image."""
    numbers_N, count = numbers_N.double(), len(numbers_N)
    return Estimate(float(numbers_N.mean()), float(numbers_N.std()) / sqrt(count) if count > 1 else nan)
