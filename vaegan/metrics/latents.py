"""What an encoder does with its latents. B batch, Z latent."""

import torch
from torch import Tensor

from vaegan.metrics.moments import Moments

ACTIVE = 0.01
"""Variance over images of a posterior mean from which a unit counts as active (Burda et al. 2016, section 5)."""


class Latents:
    """Posterior means of a stream of images, and one draw from each: sums in float64, so merging is adding."""

    def __init__(self, units: int, device: torch.device | str = "cpu") -> None:
        self._means = Moments(units, device)
        self._draws = Moments(units, device)

    def update(self, mean_BZ: Tensor, z_BZ: Tensor) -> None:
        """Take in the means of q(z|x) of a batch and a draw from each."""
        self._means.update(mean_BZ)
        self._draws.update(z_BZ)

    def tensors(self) -> tuple[Tensor, ...]:
        """What is summed over ranks, in place."""
        return (*self._means.tensors(), *self._draws.tensors())

    @property
    def active_units(self) -> int:
        """Units that tell images apart: Var_x(E[z|x]) > 0.01 (Burda et al. 2016, arXiv 1509.00519)."""
        return int((self._means.covariance_FF.diagonal() > ACTIVE).sum())

    @property
    def aggregate_gap(self) -> float:
        """KL(N(m, C) || N(0, I)) in nats, m and C of draws from the aggregate posterior E_x[q(z|x)].

        What prior samples cost the decoder for codes that no image has. At least as many draws as units + 1.
        """
        mean_Z, covariance_ZZ = self._draws.mean_F, self._draws.covariance_FF
        quadratic = covariance_ZZ.trace() + mean_Z.square().sum()
        return float(0.5 * (quadratic - len(mean_Z) - torch.linalg.slogdet(covariance_ZZ).logabsdet))
