"""What an encoder does with its latents. B batch, Z latent."""

from typing import Self

import torch
from torch import Tensor

from vaegan.metrics.moments import Moments

ACTIVE = 0.01
"""Variance over images of a posterior mean from which a unit counts as active (Burda et al. 2016, section 5)."""


class Latents:
    """Posteriors of a stream of images, and one draw from each: sums in float64, so merging is adding."""

    def __init__(self, units: int, device: torch.device | str = "cpu") -> None:
        self._means = Moments(units, device)
        self._draws = Moments(units, device)
        self._kl_Z = torch.zeros(units, dtype=torch.float64, device=device)

    def update(self, mean_BZ: Tensor, log_var_BZ: Tensor, z_BZ: Tensor) -> None:
        """Take in q(z|x) of a batch and a draw from each."""
        self._means.update(mean_BZ)
        self._draws.update(z_BZ)
        mean_BZ, log_var_BZ = mean_BZ.double(), log_var_BZ.double()
        self._kl_Z += 0.5 * (mean_BZ.square() + log_var_BZ.exp() - 1 - log_var_BZ).sum(0)

    def merge(self, other: Self) -> None:
        """Take in everything another stream has seen."""
        for own, others in zip(self.tensors(), other.tensors(), strict=True):
            own += others

    def tensors(self) -> tuple[Tensor, ...]:
        """What is summed over ranks, in place."""
        return (*self._means.tensors(), *self._draws.tensors(), self._kl_Z)

    @property
    def kl_Z(self) -> Tensor:
        """KL(q(z|x) || N(0, 1)) of each unit in nats, mean over images."""
        return self._kl_Z / self._means.count

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
