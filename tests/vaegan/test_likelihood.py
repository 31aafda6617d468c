"""Nats against torch.distributions. B batch, X one image, Z latent."""

from math import log

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence

from tests.vaegan.small import CONV, LARSEN, MLP, OPTIMIZERS, game
from vaegan import build, config, likelihood
from vaegan.objective import feature_nats, kl, players, turns, weights_at
from vaegan.step import step

STD, FLOOR = 0.3, 0.05
VARIANCES = ["fixed", "learned", "per-pixel"]


def gaussian(variance: str) -> likelihood.Likelihood:
    return likelihood.build(config.Likelihood(variance=variance, std=STD, floor=FLOOR))  # type: ignore[arg-type]


def raw_of(meaning: likelihood.Likelihood, size: int = 5) -> Tensor:
    """What a decoder of 2 x 3 x 4 images might emit."""
    return torch.randn(size, meaning.maps * 2, 3, 4)


def by_the_book(variance: str, raw: Tensor) -> Distribution:
    """The same p(x|z) made of torch.distributions."""
    spread = {"fixed": torch.tensor(STD), "learned": torch.tensor(STD**2 + FLOOR**2).sqrt()}
    if variance == "per-pixel":
        return Independent(Normal(raw[:, :2].sigmoid(), (STD**2 * raw[:, 2:].exp() + FLOOR**2).sqrt()), 3)
    return Independent(Normal(raw.sigmoid(), spread[variance]), 3)


@pytest.mark.parametrize("variance", VARIANCES)
def test_gaussian_nats_are_minus_the_log_density(variance: str) -> None:
    meaning, x = gaussian(variance), torch.rand(5, 2, 3, 4)
    raw = raw_of(meaning)
    nats = meaning(raw).nats(x)
    assert nats.shape == (5,)
    torch.testing.assert_close(nats, -by_the_book(variance, raw).log_prob(x))


def test_a_learned_variance_is_one_number_that_reaches_the_density() -> None:
    meaning, x = gaussian("learned"), torch.rand(5, 2, 3, 4)
    raw, (log_var,) = raw_of(meaning), meaning.parameters()
    with torch.no_grad():
        log_var.fill_(-1.0)
    expected = Normal(raw.sigmoid(), (torch.tensor(-1.0).exp() + FLOOR**2).sqrt())
    torch.testing.assert_close(meaning(raw).nats(x), -Independent(expected, 3).log_prob(x))


@pytest.mark.parametrize("x", [torch.zeros(5, 2, 3, 4), torch.ones(5, 2, 3, 4), torch.rand(5, 2, 3, 4).round()])
def test_bernoulli_nats_are_minus_the_log_probability(x: Tensor) -> None:
    x = x.double()
    meaning = likelihood.build(config.Likelihood(kind="bernoulli"))
    raw = 4 * raw_of(meaning)
    nats = meaning(raw).nats(x)
    assert nats.shape == (5,)
    torch.testing.assert_close(nats, -Independent(Bernoulli(logits=raw), 3).log_prob(x))


@pytest.mark.parametrize("variance", VARIANCES)
def test_what_is_shown_is_the_mean(variance: str) -> None:
    meaning = gaussian(variance)
    raw = raw_of(meaning)
    torch.testing.assert_close(meaning(raw).presented(), by_the_book(variance, raw).mean)


def test_a_bernoulli_shows_its_mean() -> None:
    meaning, raw = likelihood.build(config.Likelihood(kind="bernoulli")), torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(meaning(raw).presented(), Bernoulli(logits=raw).mean)


def test_kl_is_the_divergence_from_the_prior() -> None:
    mean, log_var = torch.randn(2, 5, 3)
    divergence = kl_divergence(Normal(mean, torch.exp(log_var / 2)), Normal(torch.zeros(()), torch.ones(())))
    assert kl(mean, log_var).shape == (5,)
    torch.testing.assert_close(kl(mean, log_var), divergence.sum(1))
    torch.testing.assert_close(kl(torch.zeros(5, 3), torch.zeros(5, 3)), torch.zeros(5))


def variance_of(meaning: likelihood.Likelihood, raw_log_var: Tensor) -> tuple[Tensor, Tensor]:
    """(variance of p(x|z), its leaf) where the learned log-variance sits at this value."""
    if meaning.maps == 2:
        leaf = torch.full((1, 2, 3, 4), float(raw_log_var) - 2 * log(STD), requires_grad=True)
        return meaning(torch.cat([torch.zeros_like(leaf), leaf], 1)).log_var.exp(), leaf
    (leaf,) = meaning.parameters()
    with torch.no_grad():
        leaf.copy_(raw_log_var)
    return meaning(torch.zeros(1, 2, 3, 4)).log_var.exp(), leaf


@pytest.mark.parametrize("variance", ["learned", "per-pixel"])
@pytest.mark.parametrize("raw", [2 * log(FLOOR) - 30, 2 * log(FLOOR), 0.0])
def test_a_learned_variance_stays_above_its_floor_and_keeps_a_gradient(variance: str, raw: float) -> None:
    above, leaf = variance_of(gaussian(variance), torch.tensor(raw))
    assert (above >= FLOOR**2 * (1 - 1e-12)).all()
    torch.testing.assert_close(above, torch.full_like(above, FLOOR**2) + torch.tensor(raw).exp())
    (gradient,) = torch.autograd.grad(above.log().sum(), leaf)
    assert (gradient != 0).all()


def test_at_the_floor_half_of_the_gradient_is_left() -> None:
    at_floor, leaf = variance_of(gaussian("learned"), torch.tensor(2 * log(FLOOR)))
    torch.testing.assert_close(at_floor, torch.tensor(2 * FLOOR**2))
    (gradient,) = torch.autograd.grad(at_floor.log(), leaf)
    torch.testing.assert_close(gradient, torch.tensor(0.5))


@pytest.mark.parametrize("schedule", ["plain", "joint"])
def test_the_learned_variance_is_the_autoencoders_to_learn(schedule: str) -> None:
    objective = config.Objective(schedule=schedule, likelihood=config.Likelihood(variance="learned", std=STD))  # type: ignore[arg-type]
    model, everyone, batch, noise = game(objective)
    (log_var,) = model.likelihood.parameters()
    owners = [
        name
        for name, player in everyone.items()
        if any(log_var is held for group in player.optimizer.param_groups for held in group["params"])
    ]
    assert owners == ["autoencoder"]
    before = log_var.detach().clone()
    step(turns(objective), everyone, batch, noise, weights_at(objective, 0))
    assert not torch.equal(log_var, before)


def test_the_learned_variance_settles_at_the_mean_squared_error() -> None:
    # sigma-VAE, eq. 9 of Rybkin et al. 2021: the likelihood is greatest where the variance is the mean squared error
    meaning, x = gaussian("learned"), torch.rand(5, 2, 3, 4)
    raw, (log_var,) = raw_of(meaning), meaning.parameters()
    error = (x - raw.sigmoid()).square().mean()
    with torch.no_grad():
        log_var.copy_((error - FLOOR**2).log())
    (gradient,) = torch.autograd.grad(meaning(raw).nats(x).sum(), log_var)
    torch.testing.assert_close(gradient, torch.zeros(()), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("networks", "shape", "layer"), [(MLP, (2, 3, 4), 1), (CONV, (1, 32, 32), 2)])
def test_feature_nats_are_a_unit_gaussian_on_the_discriminators_features(
    networks: config.Networks, shape: tuple[int, int, int], layer: int
) -> None:
    objective = config.Objective(reconstruction="features", feature_layer=layer)
    model, everyone, batch, _ = game(objective, networks=networks, shape=shape)
    x_hat, more = torch.rand(2, 6, *shape)
    judged = model.discriminator.judge(torch.cat([x_hat, more]))
    nats = feature_nats(objective, everyone, batch, judged)
    assert nats.shape == (6,)
    at_x = model.discriminator.judge(batch.images).features[layer - 1].flatten(1)
    at_x_hat = model.discriminator.judge(x_hat).features[layer - 1].flatten(1)
    torch.testing.assert_close(nats, -Independent(Normal(at_x_hat, torch.ones(())), 1).log_prob(at_x))


def test_a_feature_layer_that_is_not_there_is_refused() -> None:
    objective = config.Objective(reconstruction="features", feature_layer=2)
    _, everyone, batch, noise = game(objective)
    with pytest.raises(ValueError, match=r"objective\.feature_layer is 2; this discriminator has layers 1 to 1"):
        step(turns(objective), everyone, batch, noise, weights_at(objective, 0))


def test_per_pixel_variances_take_two_maps_a_channel() -> None:
    model = build(MLP, config.Likelihood(variance="per-pixel"), (2, 3, 4))
    assert model.decoder.logits(torch.randn(5, 3)).shape == (5, 4, 3, 4)
    assert model.sample(5).shape == (5, 2, 3, 4)
    assert players(model, config.Objective(), OPTIMIZERS).keys() == {"discriminator", "autoencoder", "generator"}


def test_larsens_likelihood_has_no_free_variance() -> None:
    assert not list(game(LARSEN).model.likelihood.parameters())
