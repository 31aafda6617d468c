"""Signs that a run has gone wrong: what each means, whether it shows, what is to be done. The loop does it.

T terms, S steps.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import log
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.settings import Health
from pipeline.training.state import Progress
from vaegan.step import Weights

COIN = log(2)
"""Loss of a discriminator that tells nothing apart, in nats."""
STRICTER = 3.0
"""What the weight of the discriminator's penalty is multiplied by when it rests."""
SLOWER = 0.1
"""What the rate of a player is multiplied by when a run is set back."""
SET_BACKS = 3
"""Of one run, at most."""


class Sign(NamedTuple):
    """One kind of trouble, whose threshold is the setting of its name."""

    bad: Literal["below", "above"]
    means: str
    remedy: str
    """What to try."""
    cure: Literal["hold", "set back"] | None = None
    """What `act` does. hold: the discriminator rests, and is under a stricter penalty afterwards; where that did not
    help, the run is set back."""
    whose: Literal["discriminator", "everyone"] = "everyone"
    """Who shows it, unless at rest, and whose rate is lower in a run that was set back for it."""


SIGNS = {
    "posterior_collapse": Sign(
        "below",
        "codes say next to nothing about their images, so the decoder does without them",
        "lower objective.beta, or let it rise over objective.beta_warmup images",
    ),
    "active_units": Sign(
        "below",
        "few latent units tell images apart",
        "lower objective.beta, let it rise over objective.beta_warmup images, or choose a smaller networks.latent",
    ),
    "mode_collapse": Sign(
        "below",
        "samples vary much less than they should: the generator makes a few of them over and over",
        "lower objective.lambda or optimizers.discriminator.lr",
    ),
    "discriminator_saturation": Sign(
        "below",
        "the discriminator is sure of every image, so the generator has no way to do better",
        "lower optimizers.discriminator.lr, or set objective.penalty or objective.gate",
        cure="hold",
        whose="discriminator",
    ),
    "discriminator_blindness": Sign(
        "below",
        "the discriminator is no better than a coin, so the generator learns nothing from it",
        "lower optimizers.discriminator.lr",
        cure="set back",
        whose="discriminator",
    ),
    "logit_gap": Sign(
        "above",
        "the discriminator's answers run away, and what the generator learns from them with it",
        "lower optimizers.discriminator.lr, or set objective.penalty or objective.gate",
        cure="hold",
        whose="discriminator",
    ),
    "gradient_vanishing": Sign(
        "below",
        "the discriminator has died, or the generator gets nothing from it",
        "lower optimizers.discriminator.lr",
        cure="set back",
        whose="discriminator",
    ),
    "gradient_explosion": Sign(
        "above",
        "one step more may ruin a player's weights",
        "lower the rate of the player whose train/<turn>/gradient_norm is largest",
        cure="set back",
    ),
}
"""By name, and beside them `not_finite`, which needs no threshold."""

CURABLE = frozenset(name for name, sign in SIGNS.items() if sign.cure is not None)
"""Signs that a checkpoint must not carry for a run to be set back to it."""

DISCRIMINATORS = frozenset(name for name, sign in SIGNS.items() if sign.whose == "discriminator")
"""Signs that say nothing while the discriminator rests."""


class Finding(NamedTuple):
    """A sign that shows from now on."""

    sign: str
    text: str


Treatment = Literal["tell", "end", "hold", "set back"]


def readings(terms: Mapping[str, float], units: int, lambda_: float) -> dict[str, float]:
    """Sign -> its number. terms: `turn/term` -> mean since the last reading; units: of the latent code.

    Where nobody learns from the discriminator, lambda being 0, it may be as sure as it likes.
    """
    norms = {name.partition("/")[0]: norm for name, norm in terms.items() if name.endswith("/gradient_norm")}
    found = {"posterior_collapse": terms["autoencoder/kl"] / units, "gradient_explosion": max(norms.values())}
    if lambda_ > 0:
        kinds = [f"discriminator/{kind}" for kind in ("real", "samples", "reconstructions")]
        loss = fmean(terms[kind] for kind in kinds if kind in terms)
        found |= {"discriminator_saturation": loss, "discriminator_blindness": COIN - loss}
        found["logit_gap"] = abs(terms["discriminator/logit_real"] - terms["discriminator/logit_fake"])
        found["gradient_vanishing"] = min(norm for turn, norm in norms.items() if turn != "autoencoder")
    return found


def evaluated(figures: Mapping[str, float], units: int) -> dict[str, float]:
    """Sign -> its number, for those that an evaluation's figures show.

    Samples are compared with reconstructions: those of a young or blurred decoder vary little too.
    """
    found = {}
    if "eval/active_units/latents" in figures:
        found["active_units"] = figures["eval/active_units/latents"] / units
    covered = [value for name, value in figures.items() if name == "eval/class_coverage/samples"]
    for name, value in figures.items():
        beside = figures.get(name.replace("/samples", "/reconstructions"), 0.0)
        if name.startswith(("eval/diversity", "eval/spacing")) and name.endswith("/samples") and beside > 0:
            covered.append(value / beside)
    return found | ({"mode_collapse": min(covered)} if covered else {})


def points(found: Mapping[str, float]) -> dict[str, float]:
    """The same as points of curves."""
    return {f"health/{sign}": value for sign, value in found.items()}


def bad_since(found: Mapping[str, float], images_seen: int, before: Mapping[str, int], rules: Health) -> dict[str, int]:
    """Of signs that are bad in this reading, since when: images seen. before: the same at the reading before."""
    return {sign: before.get(sign, images_seen) for sign, value in found.items() if _is_bad(sign, value, rules)}


def showing(since: Mapping[str, int], images_seen: int, rules: Health) -> list[str]:
    """Signs that have been bad for long enough."""
    return [sign for sign, start in since.items() if images_seen - start >= rules.patience]


def look(found: Mapping[str, float], images_seen: int, progress: Progress, rules: Health) -> list[Finding]:
    """Signs that show from this reading on; the run's progress remembers them. images_seen: of the reading."""
    if 0 < images_seen <= progress.held_until:  # all of this reading's steps, where it is the last of the rest
        found = {sign: value for sign, value in found.items() if sign not in DISCRIMINATORS}
    since = bad_since(found, images_seen, progress.bad_since, rules)
    shown = showing(since, images_seen, rules)
    onsets = [sign for sign in shown if sign not in progress.standing]
    _forget(progress, found)
    progress.bad_since |= since
    if images_seen - progress.held_until > rules.patience and not CURABLE & progress.bad_since.keys():
        progress.held_since = None
    progress.standing += shown
    progress.flags += onsets
    return [Finding(sign, _text(sign, found[sign], rules)) for sign in onsets]


def carried(progress: Progress) -> tuple[str, ...]:
    """Signs that a checkpoint saved now carries: those that showed since the last one."""
    return tuple(sorted({*progress.flags, *progress.standing}))


def treatment(sign: str, progress: Progress, rules: Health) -> Treatment:
    """What is done about a sign that shows."""
    worst: Treatment = "end" if sign == "not_finite" or rules.mode == "stop" else "tell"
    cure = "set back" if sign == "not_finite" else SIGNS[sign].cure
    rests = progress.images_seen < progress.held_until  # since this very reading: later ones have no such signs
    if rules.mode != "act" or cure is None or (rests and sign in DISCRIMINATORS):
        return worst
    if cure == "hold" and not progress.held_until:
        return "hold"
    return "set back" if progress.set_back < SET_BACKS else worst


def onset(sign: str, progress: Progress) -> int | None:
    """Images seen at the first reading of the illness that a sign is of; that which a rest did not help is one still.

    What is bad about the discriminator is one illness: while it dies it is blind, and vanishing gradients come last.
    """
    if progress.held_since is not None:
        return progress.held_since
    return _earliest(progress, DISCRIMINATORS if sign in DISCRIMINATORS else {sign})


def hold(progress: Progress, rules: Health, penalty: float) -> str:
    """Let the discriminator rest, and raise its penalty where there is one. Returns what was done."""
    progress.held_since = _earliest(progress, DISCRIMINATORS)
    progress.held_until = progress.images_seen + rules.hold
    _forget(progress, DISCRIMINATORS)
    progress.penalty *= STRICTER
    raised = f"; its penalty weighs {STRICTER:g} times what it did" if penalty else ""
    return f"the discriminator rests for {rules.hold:,} images{raised}"


def slow(sign: str, progress: Progress, players: Iterable[str]) -> str:
    """Count a run as set back, which lowers rates and ends all that showed. Returns what was done to the rates."""
    who = "everyone" if sign == "not_finite" else SIGNS[sign].whose
    for player in players:
        if who in (player, "everyone"):
            progress.rates[player] = SLOWER * progress.rates.get(player, 1.0)
    progress.set_back += 1
    progress.held_since, progress.held_until, progress.flags = None, 0, []
    _forget(progress, SIGNS)
    return f"{who}'s learning rate is {SLOWER:g} times what it was"


def treated(weights: Weights, progress: Progress, players: Iterable[str]) -> dict[str, Tensor]:
    """The next step's weights, as what was done to the run changes them; a rate for each player among them."""
    rates = {player: progress.rates.get(player, 1.0) for player in players}
    if progress.images_seen < progress.held_until:
        rates["discriminator"] = 0.0
    factors = {player: torch.tensor(rate, dtype=torch.float64) for player, rate in rates.items()}
    return {**weights, "penalty": progress.penalty * weights["penalty"], **factors}


def not_finite(networks: Mapping[str, nn.Module]) -> str:
    """The first network with a weight that is NaN or infinite, or nothing."""
    for name, network in networks.items():
        if not all(torch.isfinite(weight).all() for weight in network.parameters()):
            return name
    return ""


def first_not_finite(names: Sequence[str], means_ST: Tensor) -> tuple[int, str] | None:
    """The first step, counted from 0, with a term that is NaN or infinite, and that term's name."""
    bad_ST = ~torch.isfinite(means_ST)
    if not bad_ST.any():
        return None
    step, term = bad_ST.nonzero()[0].tolist()
    return step, names[term]


def _earliest(progress: Progress, signs: Collection[str]) -> int | None:
    return min((start for sign, start in progress.bad_since.items() if sign in signs), default=None)


def _forget(progress: Progress, signs: Collection[str]) -> None:
    progress.bad_since = {sign: start for sign, start in progress.bad_since.items() if sign not in signs}
    progress.standing = [sign for sign in progress.standing if sign not in signs]


def _is_bad(sign: str, value: float, rules: Health) -> bool:
    threshold = _threshold(sign, rules)
    return value < threshold if SIGNS[sign].bad == "below" else value > threshold


def _threshold(sign: str, rules: Health) -> float:
    threshold: float = getattr(rules, sign)
    return threshold


def _text(sign: str, value: float, rules: Health) -> str:
    bad, means, remedy, *_ = SIGNS[sign]
    return f"{sign} is {value:.3g}, {bad} health.{sign} = {_threshold(sign, rules):g}: {means}; {remedy}"
