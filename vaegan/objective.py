"""What each player minimises, in nats per image. B batch, Z latent.

    L_VAE = -E_q[log p(x|z)] + beta * KL(q(z|x) || p(z))
    L_GAN =  E_x[log D(x)] + E_z[log(1 - D(G(z)))]
    L     =  L_VAE + lambda * L_GAN

D ascends L_GAN, the generator descends it, encoder and decoder descend L_VAE.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from vaegan import config
from vaegan.likelihood import Gaussian
from vaegan.model import VAEGAN, Autoencoder, Critic, Generator, Learner, Passed
from vaegan.networks.ports import Judgement
from vaegan.precision import raised
from vaegan.step import Agree, Batch, Draft, Made, Noise, Player, Players, Rests, Terms, Turn


def kl(mean_BZ: Tensor, log_var_BZ: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) in nats, summed over Z: (B,). Kingma & Welling 2014, appendix B."""
    return kl_of_units(mean_BZ, log_var_BZ).sum(1)


def kl_of_units(mean_BZ: Tensor, log_var_BZ: Tensor) -> Tensor:
    """The same of each unit alone, (B, Z)."""
    return 0.5 * (mean_BZ.square() + log_var_BZ.exp() - 1 - log_var_BZ)


def real_loss(logits_B: Tensor) -> Tensor:
    """-log D(x), (B,)."""
    return softplus(-logits_B)


def fake_loss(logits_B: Tensor) -> Tensor:
    """-log(1 - D(G(z))), (B,)."""
    return softplus(logits_B)


def non_saturating(logits_B: Tensor) -> Tensor:
    """-log D(G(z)), (B,): the generator's heuristic of Goodfellow et al. 2014, section 3."""
    return softplus(-logits_B)


def saturating(logits_B: Tensor) -> Tensor:
    """log(1 - D(G(z))), (B,): the generator's side of L_GAN as written."""
    return -softplus(logits_B)


GENERATOR_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"non-saturating": non_saturating, "saturating": saturating}

STEP = 0.05
"""How far apart the two images are, in standard deviations of a pixel, between which a slope of D is measured."""


def weights_at(objective: config.Objective, images_seen: int) -> dict[str, Tensor]:
    """beta, lambda and gamma / 2 after this many images, under the names of the terms they weigh; CPU, float64."""
    beta = objective.beta * _ramp(images_seen, objective.beta_warmup)
    lambda_ = objective.lambda_ * _ramp(images_seen, objective.lambda_warmup)
    return {
        "kl": torch.tensor(beta, dtype=torch.float64),
        "adversarial": torch.tensor(lambda_, dtype=torch.float64),
        "penalty": torch.tensor(objective.penalty / 2, dtype=torch.float64),
    }


def _ramp(images_seen: int, warmup: int) -> float:
    return min(1.0, images_seen / warmup) if warmup else 1.0


def turns(objective: config.Objective) -> tuple[Turn, ...]:
    """The moves of one step, in order."""
    joint = objective.schedule == "joint"
    draft = Draft("autoencoder", partial(joint_draft, objective)) if joint else Draft("generator", samples)
    discriminator = Turn(
        name="discriminator",
        player="discriminator",
        opponents=("autoencoder",),
        draft=draft,
        terms=partial(discriminator_terms, objective),
        gate=None if objective.gate is None else partial(rest, objective.gate),
    )
    generator = Turn(
        name="generator",
        player="generator",
        opponents=("discriminator",),
        draft=draft,
        terms=partial(generator_terms, objective),
        pace="adversarial",
    )
    vae_side = Turn(
        name="autoencoder",
        player="autoencoder",
        opponents=("discriminator",),
        draft=draft,
        terms=partial(joint_terms if joint else vae_terms, objective),
    )
    return (discriminator, vae_side) if joint else (discriminator, generator, vae_side)


def players(
    model: VAEGAN,
    objective: config.Objective,
    optimizers: config.Optimizers,
    wrap: Callable[[Learner], nn.Module] = lambda learner: learner,
    precision: torch.dtype | None = None,
) -> dict[str, Player]:
    """The learners of the schedule; `wrap` puts each inside DDP where there are several ranks.

    precision: what layers compute in while training, bf16 or None for that of the weights.
    """

    def player(learner: Learner, settings: config.Optimizer, parts: dict[str, nn.Module]) -> Player:
        learner.precision = precision
        return Player(learner, wrap(learner), optimizer(settings, learner), parts)

    everyone = {
        "discriminator": player(
            Critic(model.discriminator), optimizers.discriminator, {"discriminator": model.discriminator}
        ),
        "autoencoder": player(
            model.autoencoder,
            optimizers.autoencoder,
            {"encoder": model.encoder, "decoder": model.decoder, "likelihood": model.likelihood},
        ),
    }
    if objective.schedule == "plain":
        everyone["generator"] = player(Generator(model.decoder), optimizers.generator, {"decoder": model.decoder})
    return everyone


def optimizer(settings: config.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over all weights of a network: one kernel for all of them.

    On a GPU its rate and its count of steps are tensors there, so that a captured step can use them.
    """
    device = next(network.parameters()).device
    on_gpu = device.type == "cuda"
    lr = torch.tensor(settings.lr, device=device) if on_gpu else settings.lr
    made: torch.optim.Optimizer
    if settings.kind == "adam":
        betas = (settings.momentum, settings.decay)
        made = torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True, capturable=on_gpu)
    else:
        made = torch.optim.RMSprop(
            network.parameters(), lr=lr, momentum=settings.momentum, alpha=settings.decay, capturable=on_gpu
        )
    for group in made.param_groups:
        group["initial_lr"] = settings.lr
    return made


class Samples(NamedTuple):
    """Images of prior samples, (B, ...)."""

    shown: Tensor


def samples(players: Players, batch: Batch, noise: Noise) -> Samples:
    """`plain`: what D and then the generator look at, G(z) of prior samples."""
    raw: Tensor = players["generator"].learner(noise.prior_BZ)
    return Samples(_autoencoder(players).likelihood(raw).presented())


def joint_draft(objective: config.Objective, players: Players, batch: Batch, noise: Noise) -> Passed:
    """`joint`: one pass of images and prior samples through the autoencoder (Larsen 2016, algorithm 1)."""
    passed: Passed = players["autoencoder"].learner(
        batch.images, noise.posterior_BZ, noise.prior_BZ, detached=objective.judge_reconstructions
    )
    return passed


def discriminator_terms(
    objective: config.Objective, players: Players, batch: Batch, noise: Noise, made: Callable[[], Made]
) -> Terms:
    """-L_GAN: `real`, `samples` and, where D judges them, `reconstructions`. Then `penalty`, and, to be told, the
    logits behind them."""
    names = ("reconstructions", "samples") if objective.judge_reconstructions else ("samples",)
    seen = torch.cat([batch.images, made().shown.detach()])
    beside = [] if noise.directions is None else [_beside(seen, noise.directions)]
    judged: Judgement = players["discriminator"].learner(torch.cat([seen, *beside]))  # one forward: DDP averages once
    logits = judged.logits_B[: len(seen)]
    real_B, *fakes = logits.split(len(batch.images))
    losses = {"real": real_loss(real_B)} | {name: fake_loss(fake_B) for name, fake_B in zip(names, fakes, strict=True)}
    if beside:
        losses["penalty"] = squared_slopes(logits, judged.logits_B[len(seen) :]).unflatten(0, (-1, len(real_B))).sum(0)
    return losses | {"logit_real": real_B.detach(), "logit_fake": torch.stack(fakes).mean(0).detach()}


def squared_slopes(here: Tensor, there: Tensor) -> Tensor:
    """|grad f|^2 of each image, expected over the direction, from D's logits at both ends of a step along it.

    ((f(x + h v) - f(x)) / h)^2 has the mean |grad f|^2 + O(h^2) for v ~ N(0, I), and takes no second backward.
    """
    return ((there - here) / STEP).square()


def _beside(images: Tensor, directions: Tensor) -> Tensor:
    """A step away from each of K * B images, along one of B directions."""
    return (images.unflatten(0, (-1, len(directions))) + STEP * directions).flatten(0, 1)


def generator_terms(
    objective: config.Objective, players: Players, batch: Batch, noise: Noise, made: Callable[[], Made]
) -> Terms:
    """The generator's side of L_GAN on prior samples: `adversarial`."""
    return {"adversarial": GENERATOR_LOSSES[objective.adversarial](_judge(players, made().shown).logits_B)}


def vae_terms(
    objective: config.Objective, players: Players, batch: Batch, noise: Noise, made: Callable[[], Made]
) -> Terms:
    """L_VAE: `reconstruction` and `kl`. The decoder has moved since the draft, so this is a pass of its own."""
    passed: Passed = players["autoencoder"].learner(batch.images, noise.posterior_BZ)
    if objective.reconstruction == "pixels":
        reconstruction_B = passed.reconstruction.nats(batch.images)
    else:
        judged = _judge(players, passed.reconstruction.presented())
        reconstruction_B = feature_nats(objective, players, batch, judged)
    return {"reconstruction": reconstruction_B, "kl": kl(passed.mean_BZ, passed.log_var_BZ)}


def joint_terms(
    objective: config.Objective, players: Players, batch: Batch, noise: Noise, made: Callable[[], Made]
) -> Terms:
    """L_VAE and the decoder's side of L_GAN in one pass: `reconstruction`, `kl`, `adversarial`.

    Larsen 2016, algorithm 1: the likelihood reaches encoder and decoder, the adversarial term the decoder alone. It is
    summed over prior samples and, where asked for, reconstructions from codes cut off from the encoder.
    """
    passed = made()
    assert isinstance(passed, Passed)
    if objective.reconstruction == "pixels":
        logits = _judge(players, passed.shown).logits_B
        reconstruction_B = passed.reconstruction.nats(batch.images)
    else:
        judged = _judge(players, torch.cat([passed.reconstruction.presented(), passed.shown]))
        reconstruction_B = feature_nats(objective, players, batch, judged)
        logits = judged.logits_B[len(batch.images) :]
    adversarial = GENERATOR_LOSSES[objective.adversarial](logits)
    return {
        "reconstruction": reconstruction_B,
        "kl": kl(passed.mean_BZ, passed.log_var_BZ),
        "adversarial": adversarial.unflatten(0, (-1, len(batch.images))).sum(0),
    }


def feature_nats(objective: config.Objective, players: Players, batch: Batch, judged: Judgement) -> Tensor:
    """-log N(D_l(x) | D_l(x_hat), I), (B,), summed over features (Larsen 2016, eq. 7).

    judged: D on x_hat, (B, ...), and perhaps on more behind it.

    Raises ValueError where D has no such layer.
    """
    layer, layers = objective.feature_layer, len(judged.features)
    if layer > layers:
        raise ValueError(f"objective.feature_layer is {layer}; this discriminator has layers 1 to {layers}")
    with torch.no_grad():
        real = raised(_judge(players, batch.images).features[layer - 1])
    ours = raised(judged.features[layer - 1][: len(real)])
    return Gaussian(ours, real.new_zeros(())).nats(real)


def rest(gate: config.Gate, terms: Terms, agree: Agree) -> Rests:
    """Who rests, by Larsen's released code: decided on losses agreed over ranks, so every rank decides alike."""
    real = terms["real"].mean()
    fake = torch.stack([terms[name].mean() for name in ("samples", "reconstructions") if name in terms]).mean()
    losses = agree(torch.stack([real, fake]))
    discriminator_ahead = (losses < gate.equilibrium - gate.margin).any()
    decoder_ahead = (losses > gate.equilibrium + gate.margin).any()
    return {
        "discriminator": discriminator_ahead & ~decoder_ahead,
        "decoder": decoder_ahead & ~discriminator_ahead,
    }


def _autoencoder(players: Players) -> Autoencoder:
    network = players["autoencoder"].network
    assert isinstance(network, Autoencoder)
    return network


def _judge(players: Players, x: Tensor) -> Judgement:
    """D as an opponent looks at it, not as it learns."""
    judged: Judgement = players["discriminator"].network(x)
    return judged
