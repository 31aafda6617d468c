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
    return Estimate(float(numbers_N.double().mean()), float(numbers_N.double().std()) / sqrt(len(numbers_N)))


def share(value: float, count: int) -> Estimate:
    """Of those of `count` that something holds for."""
    return Estimate(value, sqrt(value * (1 - value) / count))
