"""Figures of a model against held-out images: fd_pca64 of samples and of reconstructions, PSNR. N images, Z latent."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.ranks import Ranks
from vaegan import Autoencoder
from vaegan.metrics import fd_pca
from vaegan.metrics.moments import Moments, frechet_distance
from vaegan.metrics.psnr import psnr

BATCH = 256


class Evaluator:
    """Measures models of one run. Ranks share the work; every model is asked for the same codes, drawn from the seed.

    Lower is better for `fd_pca64`, higher for `psnr` (decibels, mean over images).
    """

    def __init__(self, held_out: Tensor, samples: int, seed: int, ranks: Ranks) -> None:
        """held_out: (N, C, H, W) uint8."""
        self._held_out = held_out
        self._samples = samples
        self._seed = seed
        self._ranks = ranks
        self._pca = fd_pca.fit(_unit(held_out[: fd_pca.FITTED_ON], ranks.device))
        self._real = self._moments()
        for images in held_out.split(BATCH):
            self._real.update(self._pca.project(_unit(images, ranks.device)))

    @torch.no_grad()
    def figures(self, autoencoder: Autoencoder) -> dict[str, float]:
        """Name -> value, the same on every rank."""
        samples, reconstructions = self._moments(), self._moments()
        decibels = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        for z_BZ in self._codes(autoencoder.decoder.latent_size):
            samples.update(self._pca.project(autoencoder.decode(z_BZ)))
        for images in self._held_out[self._ranks.rank :: self._ranks.world].split(BATCH):
            originals = _unit(images, self._ranks.device)
            shown = autoencoder.reconstruct(originals)
            reconstructions.update(self._pca.project(shown))
            decibels += psnr(originals, shown).double().sum()
        self._ranks.add(*samples.tensors(), *reconstructions.tensors(), decibels)
        return {
            "eval/fd_pca64/samples": frechet_distance(self._real, samples),
            "eval/fd_pca64/reconstructions": frechet_distance(self._real, reconstructions),
            "eval/psnr/reconstructions": float(decibels / reconstructions.count),
        }

    def _codes(self, latent: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        codes_NZ = torch.randn(self._samples, latent, generator=generator)
        for codes in codes_NZ[self._ranks.rank :: self._ranks.world].split(BATCH):
            yield codes.to(self._ranks.device)

    def _moments(self) -> Moments:
        return Moments(self._pca.basis_XF.shape[1], self._ranks.device)


def _unit(images: Tensor, device: torch.device) -> Tensor:
    """uint8 -> [0, 1]."""
    return images.to(device).float() / 255
