"""Latents and bounds against closed forms. B batch, Z latent, X pixels, K draws an image."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.vaegan.small import add_up
from vaegan import Autoencoder, config
from vaegan.likelihood import Gaussian, Likelihood
from vaegan.metrics.bounds import bits_per_dim, importance_nats, infer
from vaegan.metrics.latents import Latents
from vaegan.networks.ports import DecoderNetwork, EncoderNetwork


def streamed(*shards: tuple[Tensor, Tensor]) -> Latents:
    """One stream a shard of (mean, z), added up."""
    first, *others = (Latents(shards[0][0].shape[1]) for _ in shards)
    for latents, shard in zip((first, *others), shards, strict=True):
        for batch in zip(*(tensor.split(7) for tensor in shard), strict=True):
            latents.update(*batch)
    add_up(first, *others)
    return first


def posteriors(count: int = 60, units: int = 5) -> tuple[Tensor, Tensor]:
    mean_BZ = torch.randn(count, units) @ torch.randn(units, units) + 0.3
    return mean_BZ, mean_BZ + 0.6 * torch.randn(count, units)


@pytest.mark.parametrize("sizes", [(60,), (25, 35), (1, 20, 39)])
def test_latents_of_shards_that_are_added_up_equal_one_pass(sizes: tuple[int, ...]) -> None:
    _, z_BZ = whole = posteriors()
    merged = streamed(*zip(*(tensor.split(sizes) for tensor in whole), strict=True))
    aggregate = MultivariateNormal(z_BZ.mean(0), torch.cov(z_BZ.T))
    gap = kl_divergence(aggregate, MultivariateNormal(torch.zeros(5), torch.eye(5)))
    assert merged.aggregate_gap == pytest.approx(float(gap), rel=1e-9)
    assert merged.active_units == 5


def test_active_are_units_whose_mean_varies_by_more_than_a_hundredth() -> None:
    unit_B = torch.randn(500)
    unit_B = (unit_B - unit_B.mean()) / unit_B.std()
    deviations_Z = torch.tensor([1.0, 0.101, 0.099, 0.0])
    mean_BZ = unit_B[:, None] * deviations_Z + 3
    assert streamed((mean_BZ, mean_BZ)).active_units == 2


def test_a_collapsed_encoder_says_nothing_and_draws_from_the_prior() -> None:
    draws_BZ = torch.randn(500, 4)
    centred_BZ = draws_BZ - draws_BZ.mean(0)
    white_BZ = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(draws_BZ.T)), centred_BZ.T, upper=False).T
    collapsed = streamed((torch.zeros(500, 4), white_BZ))
    assert collapsed.active_units == 0
    assert abs(collapsed.aggregate_gap) < 1e-9


PIXELS, LATENT, STD = 6, 3, 0.7


class Encoder(EncoderNetwork):
    """Linear means and a fixed, diagonal variance."""

    def __init__(self, to_mean_XZ: Tensor, log_var_Z: Tensor) -> None:
        super().__init__()
        self.to_mean_XZ = to_mean_XZ
        self.log_var_Z = log_var_Z

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean_BZ = x.flatten(1) @ self.to_mean_XZ
        return mean_BZ, self.log_var_Z.expand_as(mean_BZ)


class Decoder(DecoderNetwork):
    """x = z W."""

    latent_size = LATENT

    def __init__(self, weight_ZX: Tensor) -> None:
        super().__init__()
        self.weight_ZX = weight_ZX

    def logits(self, z_BZ: Tensor) -> Tensor:
        return (z_BZ @ self.weight_ZX).unflatten(1, (1, 2, 3))


class Linear(Likelihood):
    """N(raw, STD^2): no sigmoid, so that p(x) is Gaussian."""

    def forward(self, raw: Tensor) -> Gaussian:
        return Gaussian(raw, torch.tensor(STD).log() * 2)


class Known(NamedTuple):
    """A model of which everything is known, and the posterior that its encoder should have."""

    autoencoder: Autoencoder
    images: Tensor
    exact_nats_B: Tensor
    posterior: MultivariateNormal


def linear(encoder_error: float) -> Known:
    """Latents are orthogonal in pixels, so that a diagonal posterior can be exact."""
    weight_ZX = torch.linalg.qr(torch.randn(PIXELS, LATENT)).Q.T * torch.tensor([[2.0], [1.0], [0.3]])
    precision_Z = 1 + weight_ZX.square().sum(1) / STD**2
    to_mean_XZ = weight_ZX.T / STD**2 / precision_Z
    encoder = Encoder(
        to_mean_XZ + 0.1 * encoder_error * torch.randn(PIXELS, LATENT),
        -precision_Z.log() + encoder_error,  # wider, so that no draw weighs much more than others
    )
    images = torch.randn(8, 1, 2, 3)
    x_BX = images.flatten(1)
    return Known(
        Autoencoder(encoder, Decoder(weight_ZX), Linear(config.Likelihood())),
        images,
        -MultivariateNormal(torch.zeros(PIXELS), weight_ZX.T @ weight_ZX + STD**2 * torch.eye(PIXELS)).log_prob(x_BX),
        MultivariateNormal(x_BX @ to_mean_XZ, torch.diag(1 / precision_Z)),
    )


def cubature() -> Tensor:
    """Noise of 2 Z draws, (2Z, Z), over which the mean of anything quadratic is its expectation."""
    corners_ZZ = LATENT**0.5 * torch.eye(LATENT)
    return torch.cat([corners_ZZ, -corners_ZZ])


def test_the_bound_of_one_draw_is_the_elbo_and_lacks_the_divergence_of_the_posteriors() -> None:
    model = linear(encoder_error=0.5)
    mean_BZ, log_var_BZ = model.autoencoder.encoder(model.images)
    encoded = Independent(Normal(mean_BZ, (log_var_BZ / 2).exp()), 1)
    diagonal = MultivariateNormal(encoded.mean, encoded.variance.diag_embed())
    expected_B = model.exact_nats_B + kl_divergence(diagonal, model.posterior)
    elbos, ones = [], []
    for noise_Z in cubature():
        noise_BZ = noise_Z.expand(len(model.images), LATENT)
        elbos.append(infer(model.autoencoder, model.images, noise_BZ).elbo.nelbo_B)
        ones.append(importance_nats(model.autoencoder, model.images, noise_BZ[None]))
    torch.testing.assert_close(torch.stack(elbos).mean(0), expected_B)
    torch.testing.assert_close(torch.stack(ones).mean(0), expected_B)


def test_terms_of_the_elbo_are_those_of_the_draw() -> None:
    model, noise_BZ = linear(encoder_error=0.5), torch.randn(8, LATENT)
    passed = model.autoencoder(model.images, noise_BZ)
    found = infer(model.autoencoder, model.images, noise_BZ)
    encoded = Independent(Normal(passed.mean_BZ, (passed.log_var_BZ / 2).exp()), 1)
    torch.testing.assert_close(found.z_BZ, encoded.mean + encoded.stddev * noise_BZ)
    prior = Independent(Normal(torch.zeros(8, LATENT), 1.0), 1)
    torch.testing.assert_close(found.elbo.kl_B, kl_divergence(encoded, prior))
    likelihood = Independent(Normal(passed.reconstruction.presented(), STD), 3)
    torch.testing.assert_close(found.elbo.reconstruction_B, -likelihood.log_prob(model.images))


@pytest.mark.parametrize("draws", [1, 4])
def test_with_the_true_posterior_every_draw_gives_the_exact_likelihood(draws: int) -> None:
    model = linear(encoder_error=0)
    nats_B = importance_nats(model.autoencoder, model.images, torch.randn(draws, 8, LATENT))
    torch.testing.assert_close(nats_B, model.exact_nats_B)


def test_more_draws_bring_the_bound_down_to_the_exact_likelihood() -> None:
    model, again = linear(encoder_error=0.5), 500
    images = model.images.repeat(again, 1, 1, 1)

    def expected(draws: int) -> float:
        return float(importance_nats(model.autoencoder, images, torch.randn(draws, len(images), LATENT)).mean())

    bounds = [expected(draws) for draws in (1, 2, 8, 64)]
    exact = float(model.exact_nats_B.mean())
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - exact > 0.3
    assert 0 < bounds[-1] - exact < 0.02
    many = importance_nats(model.autoencoder, model.images, torch.randn(4000, 8, LATENT))
    torch.testing.assert_close(many, model.exact_nats_B, atol=0.05, rtol=0)


def test_bits_per_dimension_are_the_code_length_of_uint8_values() -> None:
    mass_V = torch.rand(256) / 128
    mass_V /= mass_V.sum()
    values_BX = torch.randint(256, (5, 12))
    density_BX = 256 * mass_V[values_BX]  # of (value + uniform noise) / 256
    bits_B = bits_per_dim(-density_BX.log().sum(1), 12)
    torch.testing.assert_close(bits_B, -mass_V[values_BX].log2().mean(1))
