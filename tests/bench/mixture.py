"""Where samples come from, when not from the prior. N training images, M samples, Z latent, K components."""

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from vaegan import Autoencoder
from vaegan.model import reparameterize

COMPONENTS, FITTED_ON, BATCH = 10, 10_000, 256


@torch.no_grad()
def mixture(autoencoder: Autoencoder, training: Tensor, count: int, seed: int) -> Tensor:
    """Codes (M, Z) from a mixture of 10 full Gaussians, fitted to those of training images (N, C, H, W) uint8.

    The aggregate posterior is not the prior, and what lies between the two decodes to nothing (Ghosh et al. 2020, arXiv
    1903.12436, section 4). Fitted to draws from the posteriors, as the decoder knows them.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = []
    for images in training[:FITTED_ON].split(BATCH):
        mean_BZ, log_var_BZ = autoencoder.encoder(images.float() / 255)
        codes.append(reparameterize(mean_BZ, log_var_BZ, torch.randn(mean_BZ.shape, generator=generator)))
    fitted = GaussianMixture(COMPONENTS, random_state=seed).fit(torch.cat(codes).numpy())
    chosen_M = torch.multinomial(torch.from_numpy(fitted.weights_), count, replacement=True, generator=generator)
    scale_KZZ = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
    noise_MZ = torch.randn(count, scale_KZZ.shape[1], generator=generator, dtype=scale_KZZ.dtype)
    drawn_MZ = torch.from_numpy(fitted.means_)[chosen_M] + (scale_KZZ[chosen_M] @ noise_MZ.unsqueeze(-1)).squeeze(-1)
    return drawn_MZ.float()
