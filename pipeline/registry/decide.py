"""Whether a candidate becomes champion: a pure decision on figures, apart from whoever acts on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.settings import better


class Contender(NamedTuple):
    """What is known of a model version."""

    figures: Mapping[str, float]
    """Of its evaluation, by name."""
    protocol: str
    """What they were measured on and how: the data set's digest and the settings of the evaluation."""


@dataclass(frozen=True)
class Promote:
    """The candidate becomes champion."""

    why: str


@dataclass(frozen=True)
class Keep:
    """The champion stays."""

    why: str


def decide(candidate: Contender, champion: Contender | None, metric: str) -> Promote | Keep:
    """Promote only what is better by `metric`; figures measured differently can't be compared."""
    if champion is None:
        return Promote("there is no champion yet")
    if candidate.protocol != champion.protocol:
        return Keep(f"measured on {candidate.protocol}, the champion on {champion.protocol}: not comparable")
    if metric not in champion.figures:
        return Keep(f"the champion has no {metric} to compare with")
    new, old = candidate.figures[metric], champion.figures[metric]
    is_better = new < old if better(metric) == "min" else new > old
    comparison = f"{metric} {new:.4g} against the champion's {old:.4g}"
    return Promote(comparison) if is_better else Keep(comparison)
