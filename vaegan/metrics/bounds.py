"""What images cost under a model, in nats: bounds on -log p(x). B batch, Z latent, K draws an image.

In the precision of the weights: not through the forward that learns, which may compute in a lower one.
"""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from vaegan.model import Autoencoder, reparameterize
from vaegan.objective import kl


class Elbo(NamedTuple):
    """The two terms of the negative evidence lower bound, each (B,)."""

    reconstruction_B: Tensor
    """-log p(x|z) of one draw z of the posterior."""
    kl_B: Tensor
    """KL(q(z|x) || p(z))."""

    @property
    def nelbo_B(self) -> Tensor:
        """Their sum: in expectation at least -log p(x)."""
        return self.reconstruction_B + self.kl_B


class Inferred(NamedTuple):
    """Posterior means of images, and what one draw from each gives."""

    mean_BZ: Tensor
    z_BZ: Tensor
    elbo: Elbo


def infer(autoencoder: Autoencoder, images: Tensor, noise_BZ: Tensor) -> Inferred:
    """images: (B, ...) in [0, 1]; noise_BZ ~ N(0, 1) makes the draws."""
    mean_BZ, log_var_BZ = autoencoder.encoder(images)
    z_BZ = reparameterize(mean_BZ, log_var_BZ, noise_BZ)
    nats_B = autoencoder.likelihood(autoencoder.decoder.logits(z_BZ)).nats(images)
    return Inferred(mean_BZ, z_BZ, Elbo(nats_B, kl(mean_BZ, log_var_BZ)))


def importance_nats(autoencoder: Autoencoder, images: Tensor, noise_KBZ: Tensor) -> Tensor:
    """-log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x), (B,): in expectation between -log p(x) and the bound of fewer draws.

    Burda et al. 2016 (arXiv 1509.00519), eq. 8. noise_KBZ ~ N(0, 1) makes the draws. K passes of the decoder.
    """
    mean_BZ, log_var_BZ = autoencoder.encoder(images)
    log_weights_KB = []
    for noise_BZ in noise_KBZ:
        z_BZ = reparameterize(mean_BZ, log_var_BZ, noise_BZ)
        nats_B = autoencoder.likelihood(autoencoder.decoder.logits(z_BZ)).nats(images)
        prior_over_posterior_B = 0.5 * (noise_BZ.square() + log_var_BZ - z_BZ.square()).sum(1)
        log_weights_KB.append(prior_over_posterior_B - nats_B)
    return log(len(noise_KBZ)) - torch.stack(log_weights_KB).logsumexp(0)


def bits_per_dim(nats_B: Tensor, dims: int) -> Tensor:
    """Bits that each of `dims` uint8 values costs, (B,), from -log of a density at (uint8 + uniform noise) / 256.

    A density on [0, 1] is 256 times less dense on the scale of uint8: + log2(256) (Theis et al. 2016, arXiv 1511.01844,
    section 3.1).
    """
    return nats_B / (dims * log(2)) + 8
