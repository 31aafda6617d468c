"""Who descends what, and who is left alone. B batch, Z latent."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence

from tests.vaegan.small import (
    CONV,
    JOINT,
    LARSEN,
    MLP,
    OPTIMIZERS,
    PLAIN,
    SHAPE,
    Game,
    copies,
    drawn,
    game,
    grads,
    same,
    sgd,
    values,
    weights,
    with_sgd,
)
from vaegan import VAEGAN, config, objective
from vaegan.objective import STEP, turns, weights_at
from vaegan.step import Agree, Batch, Made, Noise, Player, Players, Terms, Turn, alone, frozen, move, step, total

BERNOULLI = config.Likelihood(kind="bernoulli")
OBJECTIVES = {
    "plain": PLAIN,
    "plain, saturating": replace(PLAIN, adversarial="saturating"),
    "plain, penalty": replace(PLAIN, penalty=0.5),
    "plain, features": replace(PLAIN, reconstruction="features"),
    "plain, learned variance": replace(PLAIN, likelihood=config.Likelihood(variance="learned")),
    "joint": JOINT,
    "joint, per-pixel variance": replace(JOINT, likelihood=config.Likelihood(variance="per-pixel")),
    "joint, reconstructions": replace(JOINT, judge_reconstructions=True),
    "joint, penalty": replace(JOINT, penalty=0.5),
    "joint, penalty, reconstructions": replace(JOINT, penalty=0.5, judge_reconstructions=True),
    "larsen": LARSEN,
    "larsen, bernoulli": replace(LARSEN, likelihood=BERNOULLI),
}
every_objective = pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES.keys())
both_generator_losses = pytest.mark.parametrize("adversarial", ["non-saturating", "saturating"])


def turn_of(settings: config.Objective, name: str) -> Turn:
    (found,) = (turn for turn in turns(settings) if turn.name == name)
    return found


def take(turn: Turn, at: Game, **weighed: float) -> Terms:
    """One turn alone."""
    return step((turn,), at.players, at.batch, at.noise, weights(**({"adversarial": 1.0} | weighed)))


def terms_of(turn: Turn, at: Game) -> Terms:
    """What a turn's loss is made of."""
    made = turn.draft.make(at.players, at.batch, at.noise)
    return turn.terms(at.players, at.batch, at.noise, lambda: made)


# --- the losses -------------------------------------------------------------------------------------------------------


def test_the_losses_of_the_players_are_those_of_L_GAN() -> None:
    logits = torch.linspace(-6, 6, 25)
    d = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(objective.real_loss(logits), -d.log())
    torch.testing.assert_close(objective.fake_loss(logits), -(1 - d).log())
    torch.testing.assert_close(objective.non_saturating(logits), -d.log())
    torch.testing.assert_close(objective.saturating(logits), (1 - d).log())


def test_the_losses_are_finite_where_the_probability_is_not() -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    for loss in (objective.real_loss, objective.fake_loss, objective.non_saturating, objective.saturating):
        assert loss(logits).isfinite().all()
        assert torch.autograd.grad(loss(logits).sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("schedule", ["plain", "joint"])
def test_the_saturating_generator_descends_exactly_what_the_discriminator_ascends(schedule: str) -> None:
    settings = config.Objective(schedule=schedule, adversarial="saturating")  # type: ignore[arg-type]
    at = game(settings)
    judged = terms_of(turn_of(settings, "discriminator"), at)["samples"]
    descends = turn_of(settings, "generator" if schedule == "plain" else "autoencoder")
    descended = terms_of(descends, at)["adversarial"]
    torch.testing.assert_close(descended, -judged, rtol=0, atol=1e-15)


@every_objective
def test_every_term_is_of_each_image(settings: config.Objective) -> None:
    at = game(settings)
    logged = step(turns(settings), at.players, at.batch, at.noise, weights_at(settings, 0))
    assert not any(term.requires_grad for term in logged.values())
    norms = {name for name, term in logged.items() if term.shape == ()}
    assert norms == {f"{turn.name}/gradient_norm" for turn in turns(settings)}
    assert {logged[name].shape for name in logged.keys() - norms} == {(6,)}
    fakes = {"samples", "reconstructions"} if settings.judge_reconstructions else {"samples"}
    expected = norms | {f"discriminator/{name}" for name in {"real", "logit_real", "logit_fake"} | fakes}
    if settings.penalty:
        expected.add("discriminator/penalty")
    expected |= {"autoencoder/reconstruction", "autoencoder/kl"}
    expected.add("generator/adversarial" if settings.schedule == "plain" else "autoencoder/adversarial")
    assert logged.keys() == expected


# --- slopes -----------------------------------------------------------------------------------------------------------


def test_squared_slopes_of_a_line_average_to_its_gradients_square() -> None:
    slope_X = torch.randn(12, dtype=torch.float64)
    directions = 12**0.5 * torch.eye(12, dtype=torch.float64)  # their second moment is that of N(0, I)
    here = torch.randn((), dtype=torch.float64)
    measured = torch.stack([objective.squared_slopes(here, here + objective.STEP * slope_X @ v) for v in directions])
    torch.testing.assert_close(measured.mean(), slope_X.square().sum())


def test_the_penalty_is_the_squared_gradient_at_real_and_generated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "STEP", 1e-6)  # so short that no ReLU bends within it
    settings = replace(PLAIN, penalty=0.5)
    at = game(settings)
    turn = turn_of(settings, "discriminator")
    pixels = at.batch.images[0].numel()
    directions = pixels**0.5 * torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *at.batch.images.shape[1:])
    found = [
        terms_of(turn, at._replace(noise=at.noise._replace(directions=v.expand_as(at.batch.images))))["penalty"]
        for v in directions
    ]
    with torch.no_grad():
        shown = at.model.decoder(at.noise.prior_BZ)
    seen = torch.cat([at.batch.images, shown]).requires_grad_()
    (gradient,) = torch.autograd.grad(at.model.discriminator.judge(seen).logits_B.sum(), seen)
    exact = gradient.square().flatten(1).sum(1).unflatten(0, (2, -1)).sum(0)
    torch.testing.assert_close(torch.stack(found).mean(0), exact, rtol=1e-6, atol=0)


def test_the_penalty_flattens_the_discriminator_and_counts_gamma_halves() -> None:
    settings = replace(PLAIN, penalty=0.5)
    torch.testing.assert_close(weights_at(settings, 0)["penalty"], torch.tensor(0.25, dtype=torch.float64))
    at = game(settings)
    at = at._replace(players=with_sgd(at.players, 1e-5))
    turn = turn_of(settings, "discriminator")
    before = terms_of(turn, at)["penalty"].mean()
    take(turn, at, penalty=1e3)
    assert terms_of(turn, at)["penalty"].mean() < before


# --- the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "beta", "lambda_"), [(0, 0.0, 0.0), (25, 0.5, 1.0), (50, 1.0, 2.0), (100, 2.0, 4.0), (400, 2.0, 4.0)]
)
def test_weights_warm_up_linearly_in_images(seen: int, beta: float, lambda_: float) -> None:
    settings = config.Objective(beta=2.0, beta_warmup=100, lambda_=4.0, lambda_warmup=100)
    torch.testing.assert_close(weights_at(settings, seen), weights(kl=beta, adversarial=lambda_, penalty=0.0))


def test_beta_and_lambda_warm_up_apart_and_at_once_without_a_warm_up() -> None:
    settings = config.Objective(beta=2.0, lambda_=4.0, lambda_warmup=100)
    torch.testing.assert_close(weights_at(settings, 0), weights(kl=2.0, adversarial=0.0, penalty=0.0))
    torch.testing.assert_close(weights_at(settings, 10), weights(kl=2.0, adversarial=0.4, penalty=0.0))


@pytest.mark.parametrize("settings", [PLAIN, JOINT, LARSEN], ids=["plain", "joint", "larsen"])
def test_the_gradient_is_linear_in_beta_with_the_kl_for_its_slope(settings: config.Objective) -> None:
    gradients = []
    for beta in (0.0, 1.0, 2.5):
        at = game(settings)
        take(turn_of(settings, "autoencoder"), at, kl=beta, adversarial=0.3)
        gradients.append(grads(at.players["autoencoder"].network))
    at = game(settings)
    mean, log_var = at.model.encoder(at.batch.images)
    divergence = kl_divergence(Normal(mean, torch.exp(log_var / 2)), Normal(torch.zeros(()), torch.ones(())))
    slope = torch.autograd.grad(divergence.sum(1).mean(), list(at.model.encoder.parameters()))
    count = len(slope)
    for beta, found in ((1.0, gradients[1]), (2.5, gradients[2])):
        torch.testing.assert_close(found[:count], [g + beta * s for g, s in zip(gradients[0], slope, strict=False)])
        torch.testing.assert_close(found[count:], gradients[0][count:])  # the decoder is not in the KL


def moved(settings: config.Objective, lambda_: float, lr: float | None = None) -> list[Tensor]:
    """What the generator's turn adds to the decoder's weights; by gradient descent where a rate is given."""
    at = game(settings)
    if lr is not None:
        at = at._replace(players=with_sgd(at.players, lr))
    before = values(at.model.decoder)
    take(turn_of(settings, "generator"), at, adversarial=lambda_)
    return [after - start for after, start in zip(values(at.model.decoder), before, strict=True)]


@both_generator_losses
def test_lambda_in_plain_weighs_the_loss_of_gradient_descent(adversarial: str) -> None:
    settings = replace(PLAIN, adversarial=adversarial)  # type: ignore[arg-type]
    at = game(settings)
    d_fake = at.model.discriminator(at.model.decoder(at.noise.prior_BZ))
    loss = -d_fake.log().mean() if adversarial == "non-saturating" else (1 - d_fake).log().mean()
    gradient = torch.autograd.grad(0.3 * loss, list(at.model.decoder.parameters()))
    torch.testing.assert_close(moved(settings, 0.3, lr=0.1), [-0.1 * g for g in gradient], rtol=1e-9, atol=1e-15)


def test_lambda_in_plain_scales_what_adam_does() -> None:
    whole = moved(PLAIN, 1.0)
    torch.testing.assert_close(moved(PLAIN, 0.3), [0.3 * m for m in whole], rtol=1e-9, atol=1e-15)
    assert all((m == 0).all() for m in moved(PLAIN, 0.0))


def test_lambda_in_plain_leaves_the_other_rates_alone() -> None:
    at = game(PLAIN)
    step(turns(PLAIN), at.players, at.batch, at.noise, weights(kl=1.0, adversarial=0.25))
    rates = {name: player.optimizer.param_groups[0]["lr"] for name, player in at.players.items()}
    assert rates == {"autoencoder": 1e-3, "discriminator": 2e-3, "generator": 0.25 * 3e-3}


@every_objective
def test_a_player_with_a_rate_of_nought_is_held_and_with_a_tenth_goes_a_tenth_of_the_way(
    settings: config.Objective,
) -> None:
    for turn in turns(settings):
        ways = []
        for rate in (1.0, 0.1, 0.0):
            at = game(settings)
            at = at._replace(players=with_sgd(at.players, 0.1))
            network = at.players[turn.player].network
            before = values(network)
            take(turn, at, kl=1.0, adversarial=0.5, **{turn.player: rate})
            ways.append([after - start for after, start in zip(values(network), before, strict=True)])
        whole, tenth, held = ways
        torch.testing.assert_close(tenth, [0.1 * way for way in whole])
        assert all((way == 0).all() for way in held)


@every_objective
def test_the_gradient_norm_is_the_length_of_the_step_of_gradient_descent(settings: config.Objective) -> None:
    for turn in turns(settings):
        at = game(settings)
        at = at._replace(players=with_sgd(at.players, 1.0))
        network = at.players[turn.player].network
        before = values(network)
        logged = take(turn, at, kl=1.0)
        ways = [(after - start).flatten() for after, start in zip(values(network), before, strict=True)]
        torch.testing.assert_close(logged[f"{turn.name}/gradient_norm"], torch.cat(ways).norm())


# --- gradient routing -------------------------------------------------------------------------------------------------


def outsiders(turn: Turn, model: VAEGAN) -> list[nn.Module]:
    """The networks that a turn must not touch."""
    others: dict[str, list[nn.Module]] = {
        "discriminator": [model.encoder, model.decoder, model.likelihood],
        "generator": [model.discriminator, model.encoder, model.likelihood],
        "autoencoder": [model.discriminator],
    }
    return others[turn.player]


@every_objective
def test_a_turn_moves_its_player_and_no_one_else(settings: config.Objective) -> None:
    at = game(settings)
    step(turns(settings), at.players, at.batch, at.noise, weights_at(settings, 0))
    for turn in turns(settings):
        for parameter in at.model.parameters():  # a gradient from elsewhere, to be found as it was left
            parameter.grad = torch.randn_like(parameter)
        others = [p for network in outsiders(turn, at.model) for p in network.parameters()]
        weights_before, grads_before = copies(others), copies(p.grad for p in others)
        own_before = copies(at.players[turn.player].network.parameters())
        take(turn, at, kl=1.0)
        assert same(weights_before, others), turn.name
        assert same(grads_before, [p.grad for p in others]), turn.name
        for before, after in zip(own_before, at.players[turn.player].network.parameters(), strict=True):
            assert before is not None
            assert not torch.equal(before, after), turn.name
        assert all(p.requires_grad for p in at.model.parameters())


def test_frozen_lets_gradients_through_to_the_inputs_alone() -> None:
    network, x = nn.Linear(3, 1), torch.randn(4, 3, requires_grad=True)
    network.bias.requires_grad_(False)
    with frozen(network):
        network(x).sum().backward()
    torch.testing.assert_close(x.grad, network.weight.detach().expand(4, 3))
    assert network.weight.grad is None
    assert network.weight.requires_grad
    assert not network.bias.requires_grad  # what was frozen before stays so


def test_frozen_thaws_after_an_error() -> None:
    network = nn.Linear(3, 1)
    with pytest.raises(RuntimeError), frozen(network):
        raise RuntimeError
    assert all(p.requires_grad for p in network.parameters())


def adversarial_alone(settings: config.Objective) -> Turn:
    """The side of the schedule that descends L_GAN, with that term and no other."""
    if settings.schedule == "plain":
        return replace(turn_of(settings, "generator"), pace=None)

    def terms(players: Players, batch: Batch, noise: Noise, made: Callable[[], Made]) -> Terms:
        return {"adversarial": objective.joint_terms(settings, players, batch, noise, made)["adversarial"]}

    return replace(turn_of(settings, "autoencoder"), terms=terms)


@both_generator_losses
@pytest.mark.parametrize("settings", [PLAIN, JOINT], ids=["plain", "joint"])
def test_the_generator_never_helps_the_discriminator(settings: config.Objective, adversarial: str) -> None:
    settings = replace(settings, adversarial=adversarial)  # type: ignore[arg-type]
    at = game(settings)
    at = at._replace(players=with_sgd(at.players, 1e-2))

    def score() -> Tensor:
        with torch.no_grad():
            return at.model.discriminator(at.model.decoder(at.noise.prior_BZ)).mean()

    for _ in range(3):
        before = score()
        take(adversarial_alone(settings), at)
        assert score() > before


@both_generator_losses
def test_the_decoder_raises_the_score_of_its_reconstructions_too(adversarial: str) -> None:
    settings = replace(LARSEN, adversarial=adversarial)  # type: ignore[arg-type]
    at = game(settings)
    at = at._replace(players=with_sgd(at.players, 1e-2))
    with torch.no_grad():
        mean, log_var = at.model.encoder(at.batch.images)
        codes = mean + at.noise.posterior_BZ * torch.exp(log_var / 2)
        at = at._replace(noise=at.noise._replace(prior_BZ=codes))  # both terms now judge the same images
        before = at.model.discriminator(at.model.decoder(codes)).mean()
    encoder_before = values(at.model.encoder)
    take(adversarial_alone(settings), at)
    with torch.no_grad():
        assert at.model.discriminator(at.model.decoder(codes)).mean() > before
    assert same(encoder_before, values(at.model.encoder))


@both_generator_losses
@pytest.mark.parametrize("settings", [PLAIN, JOINT, LARSEN], ids=["plain", "joint", "larsen"])
def test_the_discriminators_step_raises_L_GAN(settings: config.Objective, adversarial: str) -> None:
    settings = replace(settings, adversarial=adversarial)  # type: ignore[arg-type]
    at = game(settings)
    at = at._replace(players=with_sgd(at.players, 1e-2))

    def l_gan() -> Tensor:
        with torch.no_grad():
            d_real = at.model.discriminator(at.batch.images)
            d_fake = at.model.discriminator(at.model.decoder(at.noise.prior_BZ))
            return d_real.log().mean() + (1 - d_fake).log().mean()

    before = l_gan()
    for _ in range(3):
        take(turn_of(settings, "discriminator"), at)
    assert l_gan() > before


ROUTED = {"larsen": LARSEN, "joint": JOINT, "joint, reconstructions": replace(JOINT, judge_reconstructions=True)}


@pytest.mark.parametrize("settings", ROUTED.values(), ids=ROUTED.keys())
@pytest.mark.parametrize(("networks", "shape"), [(MLP, SHAPE), (CONV, (1, 32, 32))], ids=["mlp", "conv"])
def test_no_adversarial_gradient_reaches_the_encoder(
    settings: config.Objective, networks: config.Networks, shape: tuple[int, int, int]
) -> None:
    encoder, decoder = [], []
    for lambda_ in (0.0, 1e3):
        at = game(settings, networks=networks, shape=shape)
        take(turn_of(settings, "autoencoder"), at, kl=0.7, adversarial=lambda_)
        encoder.append(grads(at.model.encoder))
        decoder.append(grads(at.model.decoder))
    assert any(gradient.abs().max() > 0 for gradient in encoder[0])
    torch.testing.assert_close(encoder[0], encoder[1], rtol=0, atol=1e-13)
    assert not torch.allclose(decoder[0][0], decoder[1][0])


@pytest.mark.parametrize("settings", ROUTED.values(), ids=ROUTED.keys())
def test_no_likelihood_gradient_reaches_the_discriminator(settings: config.Objective) -> None:
    found = []
    for reconstruction in (0.0, 1e3):
        at = game(settings)
        weighed = weights(kl=1.0, adversarial=0.3, reconstruction=reconstruction)
        step(turns(settings), at.players, at.batch, at.noise, weighed)
        found.append((grads(at.model.discriminator), values(at.model.discriminator), grads(at.model.encoder)))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert not torch.allclose(found[0][2][0], found[1][2][0])


def test_the_joint_turn_decodes_and_judges_fakes_once() -> None:
    at = game(LARSEN)
    decoded, judged = [], []
    at.model.decoder.fc1.register_forward_hook(lambda _, inputs, __: decoded.append(len(inputs[0])))  # type: ignore[union-attr]
    at.model.discriminator.fc1.register_forward_hook(lambda _, inputs, __: judged.append(len(inputs[0])))  # type: ignore[union-attr]
    take(turn_of(LARSEN, "autoencoder"), at, kl=1.0)
    assert decoded == [3 * 6]  # z, z cut off from the encoder, prior
    assert judged == [3 * 6, 6]  # what was decoded, then the real images' features


# --- against a reference without cleverness ---------------------------------------------------------------------------


class Reference:
    """The equations written down: probabilities, torch.distributions, one pass and one gradient a purpose."""

    def __init__(self, settings: config.Objective, model: VAEGAN, made: Callable[..., torch.optim.Optimizer]) -> None:
        self.settings, self.model = settings, model
        self.theta = [*model.encoder.parameters(), *model.decoder.parameters()]
        self.d_optimizer = made(model.discriminator.parameters(), lr=2e-3)
        self.g_optimizer = made(model.decoder.parameters(), lr=3e-3 * settings.lambda_)
        self.vae_optimizer = made(self.theta, lr=1e-3)

    def apply(self, optimizer: torch.optim.Optimizer, gradients: tuple[Tensor, ...]) -> None:
        (group,) = optimizer.param_groups
        for parameter, gradient in zip(group["params"], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    def codes(self, batch: Batch, noise: Noise) -> tuple[Normal, Tensor]:
        mean, log_var = self.model.encoder(batch.images)
        posterior = Normal(mean, torch.exp(log_var / 2))
        return posterior, mean + noise.posterior_BZ * posterior.stddev

    def l_vae(self, batch: Batch, noise: Noise) -> Tensor:
        posterior, z = self.codes(batch, noise)
        x_hat = self.model.decoder(z)
        p: Distribution
        if self.settings.reconstruction == "features":
            features = self.model.discriminator.fc1
            at_x = features(batch.images.flatten(1))  # type: ignore[operator]
            p = Independent(Normal(features(x_hat.flatten(1)), 1.0), 1)  # type: ignore[operator]
        elif self.settings.likelihood.kind == "bernoulli":
            p, at_x = Independent(Bernoulli(x_hat), 3), batch.images
        else:
            p, at_x = Independent(Normal(x_hat, self.settings.likelihood.std), 3), batch.images
        divergence = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(1)
        return (-p.log_prob(at_x) + self.settings.beta * divergence).mean()

    def generators(self, z: Tensor, batch: Batch) -> Tensor:
        d_fake = self.model.discriminator(self.model.decoder(z))
        return {"non-saturating": -d_fake.log(), "saturating": (1 - d_fake).log()}[self.settings.adversarial].mean()

    def update(self, batch: Batch, noise: Noise) -> None:
        d, g = self.model.discriminator, self.model.decoder
        fakes = [g(noise.prior_BZ)]
        if self.settings.judge_reconstructions:
            fakes.append(g(self.codes(batch, noise)[1]))
        l_gan = d(batch.images).log().mean() + torch.stack([(1 - d(x)).log() for x in fakes]).sum(0).mean()
        if noise.directions is not None:
            ends = [(d(x), d(x + STEP * noise.directions)) for x in (batch.images, *fakes)]
            slopes = torch.stack([(there.logit() - here.logit()) / STEP for here, there in ends])
            l_gan = l_gan - self.settings.penalty / 2 * slopes.square().sum(0).mean()
        self.apply(self.d_optimizer, torch.autograd.grad(-l_gan, list(d.parameters())))
        if self.settings.schedule == "plain":
            loss = self.generators(noise.prior_BZ, batch)
            self.apply(self.g_optimizer, torch.autograd.grad(loss, list(g.parameters())))
            self.apply(self.vae_optimizer, torch.autograd.grad(self.l_vae(batch, noise), self.theta))
            return
        to_encoder = torch.autograd.grad(self.l_vae(batch, noise), list(self.model.encoder.parameters()))
        adversarial = self.generators(noise.prior_BZ, batch)
        if self.settings.judge_reconstructions:
            adversarial = adversarial + self.generators(self.codes(batch, noise)[1], batch)
        loss = self.l_vae(batch, noise) + self.settings.lambda_ * adversarial
        self.apply(self.vae_optimizer, to_encoder + torch.autograd.grad(loss, list(g.parameters())))


REFERRED = {
    "plain": PLAIN,
    "plain, saturating, bernoulli": replace(PLAIN, adversarial="saturating", likelihood=BERNOULLI),
    "plain, penalty": replace(PLAIN, penalty=0.5),
    "plain, features": replace(PLAIN, reconstruction="features"),
    "joint": JOINT,
    "joint, penalty": replace(JOINT, penalty=0.5, judge_reconstructions=True),
    "joint, reconstructions, saturating": replace(JOINT, judge_reconstructions=True, adversarial="saturating"),
    "larsen": LARSEN,
}


def adam(parameters: object, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999))  # type: ignore[arg-type]


def rmsprop(parameters: object, lr: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=lr, alpha=0.9, momentum=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", REFERRED.values(), ids=REFERRED.keys())
@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_step_equals_the_equations_written_down(settings: config.Objective, kind: str) -> None:
    images = torch.rand(3, 6, *SHAPE)
    if settings.likelihood.kind == "bernoulli":
        images = images.round()  # the book's coins land on a side
    optimizers = OPTIMIZERS
    if kind == "rmsprop":
        optimizers = config.Optimizers(
            **{
                player: config.Optimizer(kind="rmsprop", lr=getattr(OPTIMIZERS, player).lr, momentum=0.2, decay=0.9)
                for player in ("autoencoder", "discriminator", "generator")
            }
        )
    at = game(settings, optimizers=optimizers)
    start = values(at.model)
    reference = Reference(settings, deepcopy(at.model), adam if kind == "adam" else rmsprop)
    for x in images:
        _, noise = drawn(6, SHAPE, MLP.latent, settings)
        step(turns(settings), at.players, Batch(x), noise, weights_at(settings, 0))
        reference.update(Batch(x), noise)
    assert not any(torch.equal(before, after) for before, after in zip(start, values(at.model), strict=True))
    atol = 1e-9 if settings.penalty else 1e-12  # a slope is a small difference, divided by a small step, squared
    torch.testing.assert_close(at.model.state_dict(), reference.model.state_dict(), rtol=0, atol=atol)


@pytest.mark.parametrize("settings", [LARSEN, JOINT], ids=["larsen", "joint"])
def test_the_encoders_gradient_is_that_of_L_VAE_alone(settings: config.Objective) -> None:
    at = game(settings)
    reference = Reference(settings, deepcopy(at.model), adam)
    expected = torch.autograd.grad(reference.l_vae(at.batch, at.noise), list(reference.model.encoder.parameters()))
    take(turn_of(settings, "autoencoder"), at, kl=settings.beta, adversarial=5.0)
    torch.testing.assert_close(grads(at.model.encoder), list(expected), rtol=1e-10, atol=1e-13)


# --- the gate ---------------------------------------------------------------------------------------------------------

GATE = config.Gate(equilibrium=0.68, margin=0.35)
GATED = [
    ("neither is ahead", 0.69, 0.69, set()),
    ("D is sure of real images", 0.32, 0.69, {"discriminator"}),
    ("D is sure of generated images", 0.69, 0.32, {"discriminator"}),
    ("D is sure of both", 0.1, 0.1, {"discriminator"}),
    ("D misses real images", 1.04, 0.69, {"decoder"}),
    ("D misses generated images", 0.69, 1.04, {"decoder"}),
    ("both would rest", 0.32, 1.04, set()),
    ("both would rest, the other way round", 1.04, 0.32, set()),
    ("just inside the band", 0.34, 1.02, set()),
]


def resting_by(terms: Terms, agree: Agree = alone) -> set[str]:
    return {name for name, rests in objective.rest(GATE, terms, agree).items() if rests}


@pytest.mark.parametrize(("real", "fake", "resting"), [case[1:] for case in GATED], ids=[case[0] for case in GATED])
def test_the_gate_rests_whoever_is_ahead(real: float, fake: float, resting: set[str]) -> None:
    spread = torch.tensor([-0.1, 0.0, 0.1])  # the mean decides
    terms = {"real": real + spread, "samples": fake + spread}
    assert resting_by(terms) == resting
    halves = {"samples": fake - 0.2 + spread, "reconstructions": fake + 0.2 + spread}
    assert resting_by({"real": real + spread} | halves) == resting


def test_the_gate_decides_on_what_the_ranks_agree_on() -> None:
    here = {"real": torch.tensor([0.1]), "samples": torch.tensor([0.1])}
    assert resting_by(here) == {"discriminator"}
    assert resting_by(here, lambda losses: (losses + 2.5) / 2) == {"decoder"}


ALWAYS = {
    "discriminator": config.Gate(equilibrium=2.0, margin=1.0),  # losses near ln 2 are all under 1
    "decoder": config.Gate(equilibrium=0.2, margin=0.1),  # and over 0.3
}


def state_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[Tensor]:
    return [value.clone() for p in network.parameters() for value in optimizer.state[p].values()]


@pytest.mark.parametrize("settings", [PLAIN, JOINT, LARSEN], ids=["plain", "joint", "larsen"])
@pytest.mark.parametrize("resting", ["discriminator", "decoder"])
def test_whoever_rests_keeps_weights_and_optimiser_while_the_others_go_on(
    settings: config.Objective, resting: str
) -> None:
    at = game(settings)
    step(turns(settings), at.players, at.batch, at.noise, weights_at(settings, 0))  # every optimiser has a state
    network: nn.Module = getattr(at.model, resting)
    owners = [player.optimizer for player in at.players.values() if resting in player.parts]
    assert len(owners) == (2 if settings.schedule == "plain" and resting == "decoder" else 1)
    weights_before, states_before = values(network), [state_of(owner, network) for owner in owners]
    others = {name: values(part) for name, part in at.model.named_children() if name != resting}
    gated = replace(settings, gate=ALWAYS[resting])
    step(turns(gated), at.players, at.batch, at.noise, weights_at(gated, 0))
    assert same(weights_before, values(network))
    for owner, before in zip(owners, states_before, strict=True):
        assert before
        assert same(before, state_of(owner, network))
    for name, before in others.items():
        for was, now in zip(before, values(getattr(at.model, name)), strict=True):
            assert not torch.equal(was, now), name
    awake = turns(settings)
    step(awake, at.players, at.batch, at.noise, weights_at(settings, 0))  # a rest lasts one step
    assert not same(weights_before, values(network))


def test_a_discriminator_at_a_loss_pays_log_two() -> None:
    at = game(LARSEN)
    for parameter in at.model.discriminator.fc2.parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    logged = take(turn_of(LARSEN, "discriminator"), at)
    for name in ("real", "samples", "reconstructions"):
        torch.testing.assert_close(logged[f"discriminator/{name}"], torch.full((6,), log(2)))
    for name in ("logit_real", "logit_fake"):
        torch.testing.assert_close(logged[f"discriminator/{name}"], torch.zeros(6))


@every_objective
def test_the_logits_that_are_told_are_those_that_the_losses_are_of(settings: config.Objective) -> None:
    logged = take(turn_of(settings, "discriminator"), game(settings))
    real, fake = (logged[f"discriminator/logit_{which}"] for which in ("real", "fake"))
    judged = [loss for name, loss in logged.items() if name.endswith(("/samples", "/reconstructions"))]
    behind = torch.stack([loss.expm1().log() for loss in judged]).mean(0)
    torch.testing.assert_close(logged["discriminator/real"], objective.real_loss(real))
    torch.testing.assert_close(fake, behind)


# --- the step's bookkeeping -------------------------------------------------------------------------------------------


def test_a_term_counts_its_weight_and_one_without_a_weight_counts_once() -> None:
    network = nn.Linear(1, 1, bias=False)
    player = Player(network, network, sgd(network, 0.5), {})
    (weight,) = network.parameters()
    start = weight.detach().clone()
    each = weight.view(1).expand(6)
    total({"twice": each, "once": each}, weights(twice=2.0)).backward()
    move(player)
    torch.testing.assert_close(weight.data, start - 0.5 * 3)
    weight.grad = None
    total({"once": weight.view(1).expand(6)}, {}).backward()
    move(player, pace=torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(weight.data, start - 0.5 * 3 - 0.05)


def test_turns_are_those_of_the_schedule_in_order() -> None:
    assert [turn.name for turn in turns(PLAIN)] == ["discriminator", "generator", "autoencoder"]
    assert [turn.name for turn in turns(LARSEN)] == ["discriminator", "autoencoder"]
    assert game(PLAIN).players.keys() == {"discriminator", "generator", "autoencoder"}
    assert game(LARSEN).players.keys() == {"discriminator", "autoencoder"}
