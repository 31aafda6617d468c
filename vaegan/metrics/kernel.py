"""Kernel distance between two sets of features. N and M rows, F features."""

from math import ceil

import torch
from torch import Tensor


def kernel_distances(a_NF: Tensor, b_MF: Tensor, block: int) -> Tensor:
    """Squared maximum mean discrepancy under the kernel (x.y / F + 1)^3, unbiased, so it may be below 0.

    Of consecutive blocks of about `block` rows, (blocks,), float64; every row is in one. Their mean is the KID of
    Binkowski et al. 2018 (arXiv 1801.01401), section 4, on these features. Takes at least two rows a side, in random
    order, as images are.
    """
    blocks = ceil(min(len(a_NF), len(b_MF)) / block)
    pairs = zip(a_NF.tensor_split(blocks), b_MF.tensor_split(blocks), strict=True)
    return torch.stack([_unbiased(a.double(), b.double()) for a, b in pairs])


def _unbiased(a_NF: Tensor, b_MF: Tensor) -> Tensor:
    """Binkowski et al. 2018, eq. 4, for any two numbers of rows."""
    return _within(a_NF) + _within(b_MF) - 2 * _kernel(a_NF, b_MF).mean()


def _within(rows_NF: Tensor) -> Tensor:
    """Mean of the kernel over pairs of two different rows."""
    kernel_NN, count = _kernel(rows_NF, rows_NF), len(rows_NF)
    return (kernel_NN.sum() - kernel_NN.trace()) / (count * (count - 1))


def _kernel(a_NF: Tensor, b_MF: Tensor) -> Tensor:
    return (a_NF @ b_MF.T / a_NF.shape[1] + 1) ** 3
