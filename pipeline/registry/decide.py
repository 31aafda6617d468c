"""Whether a candidate becomes champion: gates over two evaluations. Pure; who acts on the verdict is elsewhere.

A difference counts once it exceeds the noise of both figures, which is that of the evaluation: other draws would have
given other figures. The seed of training is no noise here. It made another model, and models are what is compared.
"""

from collections.abc import Sequence
from math import hypot, isfinite, isnan, nan
from typing import NamedTuple

from pipeline.evaluation.protocol import Evaluation, Value, beside, how, told
from pipeline.settings import RECONSTRUCTION, Decision, better

ANEW = "with `vaegan evaluate` into its checkpoint's evaluation.json, and register that checkpoint"
NOBODY = Evaluation(figures={}, protocols={})


class Gate(NamedTuple):
    """One thing asked of the candidate, what both sides have to show, and what came of it as a sentence."""

    name: str
    candidate: str
    champion: str
    asked: str
    passed: bool
    why: str


class Verdict(NamedTuple):
    """What the gates come to."""

    gates: tuple[Gate, ...]

    @property
    def promote(self) -> bool:
        """Whether the candidate becomes champion."""
        return all(gate.passed for gate in self.gates)

    @property
    def why(self) -> str:
        """Every gate that stayed shut, and what opens it; where none did, the gain."""
        return "; ".join(gate.why for gate in self.gates if not gate.passed) or self.gates[0].why


def decide(candidate: Evaluation, champion: Evaluation | None, metric: str, rules: Decision) -> Verdict:
    """Promote what is better by `metric` than chance explains, healthy, and reconstructs well enough.

    The first of all has only to be healthy and measured, on enough. Where a figure or its noise is missing its gate
    stays shut.
    """
    if champion is None:
        measured = isfinite(candidate.figures.get(metric, nan))
        why = "there is no champion yet" if measured else f"{metric} is {_figure(candidate, metric)}: measure it {ANEW}"
        first = Gate(metric, _figure(candidate, metric), "", "a number", measured, why)
        alone = (*_counts(candidate, NOBODY, metric, rules), _health(candidate, NOBODY))
        return Verdict((first, *(gate._replace(champion="") for gate in alone)))
    return Verdict(
        (
            _gain(candidate, champion, metric, rules),
            _protocol(candidate, champion, metric),
            *_counts(candidate, champion, metric, rules),
            _health(candidate, champion),
            _reconstruction(candidate, champion, rules),
        )
    )


def _gain(candidate: Evaluation, champion: Evaluation, metric: str, rules: Decision) -> Gate:
    new, old = candidate.figures.get(metric, nan), champion.figures.get(metric, nan)
    gain = old - new if better(metric) == "min" else new - old
    noise = hypot(_noise(candidate, metric), _noise(champion, metric))
    passed = isfinite(new) and gain > rules.noises * noise
    if not isfinite(new) or isnan(gain) or isnan(noise):
        why = f"{metric} or its noise is not known of both: measure the one that lacks it {ANEW}"
    elif gain <= 0:
        why = f"{metric} is {new:.4g}, no better than the champion's {old:.4g}: train longer, or search other settings"
    else:
        why = (
            f"{metric} is {new:.4g} against the champion's {old:.4g}, better by {gain:.2g}, "
            f"{'more than' if passed else 'within'} {rules.noises:g} times the noise of the difference, {noise:.2g}"
        )
        why += "" if passed else f": measure both on more samples {ANEW}, or lower decision.noises"
    asked = f"better by {rules.noises * noise:.2g}"
    return Gate(metric, _figure(candidate, metric), _figure(champion, metric), asked, passed, why)


def _protocol(candidate: Evaluation, champion: Evaluation, metric: str) -> Gate:
    """Of both figures that are compared."""
    mine: dict[str, Value] = {}
    others: dict[str, Value] = {}
    for name in (metric, RECONSTRUCTION):
        new, old = (how(side.protocols.get(name, {})) for side in (candidate, champion))
        differing = [key for key in dict.fromkeys((*new, *old)) if new.get(key) != old.get(key)]
        mine |= {key: new.get(key) for key in differing}
        others |= {key: old.get(key) for key in differing}
    if not mine:
        return Gate("protocol", "the same", "the same", "the same", True, "both were measured alike")
    why = f"not comparable, measured with {told(mine)}; the champion with {told(others)}"
    why += f": measure one like the other {ANEW}"
    return Gate("protocol", told(mine), told(others), "the same", False, why)


def _counts(candidate: Evaluation, champion: Evaluation, metric: str, rules: Decision) -> tuple[Gate, Gate]:
    """Of samples, or where the figure draws none of held-out images; and of held-out images anyway."""
    protocols = [side.protocols.get(metric, {}) for side in (candidate, champion)]
    images = [int(one.get("images") or 0) for one in protocols]
    samples = [int(one.get("samples") or held_out) for one, held_out in zip(protocols, images, strict=True)]
    more_images = "give a run more evaluation.images"
    more_samples = f"draw them with --samples {ANEW}" if "samples" in protocols[0] else more_images
    return (
        _enough("samples", samples, rules.samples, f"{metric} was measured on", more_samples),
        _enough("images", images, rules.images, f"{metric} was measured against", more_images),
    )


def _enough(name: str, counts: Sequence[int], least: int, begins: str, remedy: str) -> Gate:
    mine, others = counts
    why = f"{begins} {mine:,} images, decision.{name} asks for {least:,}: {remedy}, or lower decision.{name}"
    return Gate(name, f"{mine:,}", f"{others:,}", f"at least {least:,}", mine >= least, why)


def _health(candidate: Evaluation, champion: Evaluation) -> Gate:
    mine, others = (", ".join(side.health) or "no sign" for side in (candidate, champion))
    why = f"its training showed {mine}: register a checkpoint without, or train anew as the run's warnings advise"
    return Gate("health", mine, others, "no sign", not candidate.health, why)


def _reconstruction(candidate: Evaluation, champion: Evaluation, rules: Decision) -> Gate:
    new, old = (side.figures.get(RECONSTRUCTION, nan) for side in (candidate, champion))
    bound = old - rules.psnr_loss
    why = (
        f"{RECONSTRUCTION} is {new:.4g} dB, below {bound:.4g}, the champion's less {rules.psnr_loss:g}: "
        "lower objective.lambda in another run, or raise decision.psnr_loss"
    )
    mine, others = (_figure(side, RECONSTRUCTION) for side in (candidate, champion))
    return Gate(RECONSTRUCTION, mine, others, f"at least {bound:.4g}", new >= bound, why)


def _figure(side: Evaluation, name: str) -> str:
    """With what belongs to it."""
    if name not in side.figures:
        return "unknown"
    noise, floor = beside(side.protocols.get(name, {}))
    shown = f"{side.figures[name]:.4g}" + (f" +- {noise}" if noise else "")
    return f"{shown} (floor {floor})" if floor else shown


def _noise(side: Evaluation, name: str) -> float:
    noise = side.protocols.get(name, {}).get("noise")
    return nan if noise is None else float(noise)
