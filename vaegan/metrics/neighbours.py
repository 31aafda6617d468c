"""Whether each set of features lies where the other does. N real rows, M fake rows, F features, B a block of rows.

A row's ball reaches to its k-th nearest neighbour in its own set. Balls of outliers are large: density and coverage
were made to mind them less.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256


class Neighbours(NamedTuple):
    """Precision and recall of Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage of Naeem et al. 2020
    (arXiv 2002.09797). 1 is best, but density may be above."""

    precision: float
    """Share of fakes in the ball of a real."""
    recall: float
    """Share of reals in the ball of a fake."""
    density: float
    """Balls of reals that a fake is in, over k, mean over fakes."""
    coverage: float
    """Share of reals with a fake in their ball."""


def neighbours(real_NF: Tensor, fake_MF: Tensor, k: int = 5) -> Neighbours:
    """Compare every real row with every fake one, a block of rows at a time; both sides have more than k rows.

    Distances are float64: |a|^2 - 2ab + |b|^2 cancels, and at a ball's border the last bits of float32 would decide.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    real_N, fake_M = _radii(real_NF, k), _radii(fake_MF, k)
    precise_M = torch.zeros(len(fake_MF), dtype=torch.bool, device=fake_MF.device)
    recalled = covered = inside = 0
    for squared_BM, radii_B in zip(_squared_distances(real_NF, fake_MF), real_N.split(BLOCK), strict=True):
        in_real_BM = squared_BM <= radii_B[:, None]
        precise_M |= in_real_BM.any(0)
        inside += int(in_real_BM.count_nonzero())
        covered += int(in_real_BM.any(1).count_nonzero())
        recalled += int((squared_BM <= fake_M).any(1).count_nonzero())
    return Neighbours(
        precision=float(precise_M.double().mean()),
        recall=recalled / len(real_NF),
        density=inside / (k * len(fake_MF)),
        coverage=covered / len(real_NF),
    )


def _radii(rows_NF: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest, itself not counted: (N,)."""
    radii_N = rows_NF.new_empty(len(rows_NF))  # one piece: many small ones would break up the memory that blocks reuse
    for radii_B, squared_BN in zip(radii_N.split(BLOCK), _squared_distances(rows_NF, rows_NF), strict=True):
        radii_B.copy_(squared_BN.topk(k + 1, largest=False).values[:, -1])
    return radii_N


def _squared_distances(a_NF: Tensor, b_MF: Tensor) -> Iterator[Tensor]:
    """|a|^2 - 2ab + |b|^2 of every two rows as one product, (B, M) for each block of a."""
    left_NG = torch.cat([-2 * a_NF, a_NF.square().sum(1, keepdim=True), a_NF.new_ones(len(a_NF), 1)], 1)
    right_MG = torch.cat([b_MF, b_MF.new_ones(len(b_MF), 1), b_MF.square().sum(1, keepdim=True)], 1)
    return (left_BG @ right_MG.T for left_BG in left_NG.split(BLOCK))
