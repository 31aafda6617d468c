"""Mean and covariance of a stream, and the Frechet distance between two. N rows so far, F features."""

from collections.abc import Callable, Sequence
from math import nan

import torch
from torch import Tensor


class Moments:
    """Count, sum and sum of outer products, in float64: merging is adding, so shards and ranks need no order."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total_F = torch.zeros(features, dtype=torch.float64, device=device)
        self.outer_FF = torch.zeros(features, features, dtype=torch.float64, device=device)

    def update(self, rows_BF: Tensor) -> None:
        """Take in a batch."""
        rows_BF = rows_BF.double()
        self.count += len(rows_BF)
        self.total_F += rows_BF.sum(0)
        self.outer_FF += rows_BF.T @ rows_BF

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is summed over ranks, in place."""
        return self.count, self.total_F, self.outer_FF

    @property
    def mean_F(self) -> Tensor:
        return self.total_F / self.count

    @property
    def covariance_FF(self) -> Tensor:
        """Unbiased."""
        mean_F = self.mean_F
        return (self.outer_FF - self.count * torch.outer(mean_F, mean_F)) / (self.count - 1)


def merged(parts: Sequence[Moments]) -> Moments:
    """Those of the parts' rows together, in order."""
    first = parts[0].total_F
    whole = Moments(len(first), first.device)
    for part in parts:
        for own, other in zip(whole.tensors(), part.tensors(), strict=True):
            own += other
    return whole


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)): squared 2-Wasserstein distance (Frechet 1957)."""
    return distance_from(a)(b)


def distance_from(a: Moments) -> Callable[[Moments], float]:
    """The Frechet distance of others from `a`, whose root, the dearest part of it, is found once."""
    if not _finite(a):
        return lambda b: nan
    mean_F, covariance_FF = a.mean_F, a.covariance_FF
    root_FF = _square_root(covariance_FF)

    def distance(b: Moments) -> float:
        if not _finite(b):
            return nan
        other_FF = b.covariance_FF
        cross = torch.linalg.eigvalsh(root_FF @ other_FF @ root_FF).clamp(min=0).sqrt().sum()
        traces = covariance_FF.trace() + other_FF.trace() - 2 * cross
        return float((mean_F - b.mean_F).square().sum() + traces)

    return distance


def _finite(moments: Moments) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in moments.tensors())


def diversity(real: Moments, made: Moments) -> float:
    """Tr C_made / Tr C_real: 1 where both vary as much, 0 where every image made is the same."""
    return float(made.covariance_FF.trace() / real.covariance_FF.trace())


def _square_root(symmetric_FF: Tensor) -> Tensor:
    values_F, vectors_FF = torch.linalg.eigh(symmetric_FF)
    return vectors_FF * values_F.clamp(min=0).sqrt() @ vectors_FF.T
