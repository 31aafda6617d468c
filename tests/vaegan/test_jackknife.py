"""The noise that the jackknife says is the noise that other draws show."""

from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor

from vaegan.metrics.jackknife import jackknife
from vaegan.metrics.moments import Moments, frechet_distance

PARTS, ROWS, FEATURES, DRAWS = 10, 1000, 4, 60


def moments(*parts: Tensor) -> Moments:
    """Of all rows together."""
    found = Moments(FEATURES)
    for rows_BF in parts:
        found.update(rows_BF)
    return found


def test_of_a_mean_it_is_the_standard_error_of_the_parts_means() -> None:
    parts = torch.randn(PARTS, 7).mean(1).tolist()
    found = jackknife(lambda kept: fmean(parts[part] for part in kept), PARTS)
    assert found == pytest.approx(stdev(parts) / PARTS**0.5, rel=1e-12)


def test_of_what_does_not_vary_it_is_nothing() -> None:
    assert jackknife(len, PARTS) == 0


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_of_a_frechet_distance_it_is_how_much_other_draws_differ(shift: float) -> None:
    real = moments(torch.randn(100_000, FEATURES))
    figures, noises = [], []
    for _ in range(DRAWS):
        parts = (torch.randn(ROWS, FEATURES) + shift).chunk(PARTS)
        figures.append(frechet_distance(real, moments(*parts)))
        noises.append(
            jackknife(lambda kept, parts=parts: frechet_distance(real, moments(*(parts[k] for k in kept))), PARTS)
        )
    assert fmean(noises) == pytest.approx(stdev(figures), rel=0.3)  # 60 draws know their own deviation to 9 %
