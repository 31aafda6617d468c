"""Whether each set of features lies where the other does, and as loosely. N real rows, M fake rows, F features, B a
block of rows, R choices of fakes.

A row's ball reaches to its k-th nearest neighbour in its own set. Balls of outliers are large: density and coverage
were made to mind them less.
"""

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256


class Neighbours(NamedTuple):
    """Precision and recall of Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage of Naeem et al. 2020
    (arXiv 2002.09797), and spacing, which is ours. 1 is best, but density and spacing may be above."""

    precision: float
    """Share of fakes in the ball of a real."""
    recall: float
    """Share of reals in the ball of a fake."""
    density: float
    """Balls of reals that a fake is in, over k, mean over fakes."""
    coverage: float
    """Share of reals with a fake in their ball."""
    spacing: float
    """Mean radius of the balls of fakes, over that of reals: near 0 where a few fakes are made over and over, which
    the other four and any variance may miss; 1 where every real has k twins. Of the first so many rows of either side
    as both have: fewer lie further apart."""


def neighbours(real_NF: Tensor, fake_MF: Tensor, parts: int = 1, k: int = 5) -> list[Neighbours]:
    """Compare every real row with all fakes, then, of several parts, with the fakes without each of these in turn.

    Both sides, and what is left of the fakes, have more than k rows; they are looked at a block at a time. Distances
    are float64: |a|^2 - 2ab + |b|^2 cancels, and at a ball's border the last bits of float32 would decide.
    """
    real_NF, fake_MF = real_NF.double(), fake_MF.double()
    (real_N,), fake_RM = _radii(real_NF, k, 1), _radii(fake_MF, k, parts)
    kept_MR = (fake_RM != -inf).T.float()
    inside_M = torch.zeros(len(fake_MF), dtype=torch.float64, device=fake_MF.device)
    recalled_R, covered_R = torch.zeros(2, len(fake_RM), dtype=torch.float64, device=fake_MF.device)
    for squared_BM, radii_B in zip(_squared_distances(real_NF, fake_MF), real_N.split(BLOCK), strict=True):
        in_real_BM = squared_BM <= radii_B[:, None]
        inside_M += in_real_BM.sum(0)
        covered_R += (in_real_BM.float() @ kept_MR > 0).sum(0)
        recalled_R += torch.stack([(squared_BM <= fake_M).any(1).count_nonzero() for fake_M in fake_RM])
    kept_MR, count_R = kept_MR.double(), kept_MR.double().sum(0)
    found_RG = torch.stack(
        [
            (inside_M > 0).double() @ kept_MR / count_R,
            recalled_R / len(real_NF),
            inside_M @ kept_MR / (k * count_R),
            covered_R / len(real_NF),
            _spacing(real_NF, real_N[None], fake_MF, fake_RM, k),
        ],
        dim=1,
    )
    return [Neighbours(*figures) for figures in found_RG.tolist()]


def _radii(rows_NF: Tensor, k: int, parts: int) -> Tensor:
    """Squared distance of each row to its k-th nearest, itself not counted, (R, N); -inf for one left out.

    The first are among all rows, the others among those without each part in turn, where there are several.
    """
    gone_R = [None, *(range(parts) if parts > 1 else ())]
    radii_RN = rows_NF.new_empty(len(gone_R), len(rows_NF))  # one piece: small ones would break up what blocks reuse
    for radii_RB, squared_BN in zip(radii_RN.split(BLOCK, 1), _squared_distances(rows_NF, rows_NF), strict=True):
        nearest = [_smallest(part, k + 1) for part in squared_BN.tensor_split(parts, 1)]
        for radii_B, gone in zip(radii_RB, gone_R, strict=True):
            among = torch.cat([near for part, near in enumerate(nearest) if part != gone], 1)
            radii_B.copy_(_smallest(among, k + 1)[:, -1])
    for radii_N, gone in zip(radii_RN, gone_R, strict=True):
        if gone is not None:
            radii_N.tensor_split(parts)[gone].fill_(-inf)
    return radii_RN


def _spacing(real_NF: Tensor, real_1N: Tensor, fake_MF: Tensor, fake_RM: Tensor, k: int) -> Tensor:
    """Mean radius of fakes over that of reals, for each choice of fakes, (R,)."""
    count, parts = min(len(real_NF), len(fake_MF)), max(1, len(fake_RM) - 1)
    real_1N = real_1N if len(real_NF) == count else _radii(real_NF[:count], k, 1)
    fake_RM = fake_RM if len(fake_MF) == count else _radii(fake_MF[:count], k, parts)
    (real,), fake_R = _mean_distances(real_1N), _mean_distances(fake_RM)
    twins = 1e-6 * real_NF.norm(dim=1).mean()  # what rounding leaves of the distance between two that are the same
    return fake_R / real if real > twins else torch.ones_like(fake_R)


def _mean_distances(squared_RM: Tensor) -> Tensor:
    """Of those not left out, (R,)."""
    return squared_RM.clamp(min=0).sqrt().sum(1) / (squared_RM != -inf).sum(1)


def _smallest(distances_BN: Tensor, count: int) -> Tensor:
    return distances_BN.topk(min(count, distances_BN.shape[1]), largest=False).values


def _squared_distances(a_NF: Tensor, b_MF: Tensor) -> Iterator[Tensor]:
    """|a|^2 - 2ab + |b|^2 of every two rows as one product, (B, M) for each block of a."""
    left_NG = torch.cat([-2 * a_NF, a_NF.square().sum(1, keepdim=True), a_NF.new_ones(len(a_NF), 1)], 1)
    right_MG = torch.cat([b_MF, b_MF.new_ones(len(b_MF), 1), b_MF.square().sum(1, keepdim=True)], 1)
    return (left_BG @ right_MG.T for left_BG in left_NG.split(BLOCK))
