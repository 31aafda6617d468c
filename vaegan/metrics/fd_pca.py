"""fd_pca64: a figure of quality that needs no weights and no download.

The Frechet distance between held-out images and generated ones on the 64 leading principal components of the held-out
images, pixels in [0, 1]. It sees what second-order statistics of pixels see: blur, wrong modes' shares, missing
variance; not fine texture. N images, X pixels, F components.
"""

from typing import NamedTuple

import torch
from torch import Tensor

COMPONENTS = 64
FITTED_ON = 2048
"""Components come from the first so many held-out images: an eigenproblem of this size takes a second."""


class Pca(NamedTuple):
    """An orthonormal projection of centred images."""

    mean_X: Tensor
    basis_XF: Tensor

    def project(self, images: Tensor) -> Tensor:
        """(B, ...) -> (B, F), float64."""
        return (images.flatten(1).double() - self.mean_X) @ self.basis_XF


def fit(images: Tensor) -> Pca:
    """The leading components of (N, ...) images; fewer than 64 where the images don't vary in as many directions.

    The sign and order of components don't matter to the distance. Solved on the smaller side, in float64. Raises
    ValueError for images that don't vary at all.
    """
    rows_NX = images[:FITTED_ON].flatten(1).double()
    mean_X = rows_NX.mean(0)
    centred_NX = rows_NX - mean_X
    wide = len(rows_NX) < rows_NX.shape[1]
    values, vectors = torch.linalg.eigh(centred_NX @ centred_NX.T if wide else centred_NX.T @ centred_NX)
    count = min(COMPONENTS, int((values > 1e-10 * values[-1].clamp(min=1e-12)).sum()))
    if not count:
        raise ValueError(f"the {len(rows_NX)} held-out images are all the same: no components to compare them on")
    leading = slice(-count, None)
    basis_XF = vectors[:, leading]
    if wide:
        basis_XF = centred_NX.T @ basis_XF / values[leading].sqrt()
    return Pca(mean_X, basis_XF)
