"""A sweep's YAML: the settings of a run, in which any leaf may be a distribution, and a section `search`.

objective:
  beta: {loguniform: [0.1, 10]}
  lambda: {choice: [0, 0.1, 1]}
networks:
  latent: {grid: [16, 64]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import Mistake
from pipeline.settings import Tree, explain, parse
from vaegan.config import STRICT, require

SEARCHED = ("networks.", "objective.", "optimizers.", "seed", "average_half_life", "data.batch")
"""What may differ between trials: what makes a model. Places, workers and evaluations are the search's."""

DISTRIBUTIONS = ("uniform", "loguniform", "choice", "grid")


@dataclass(frozen=True, kw_only=True)
class Search:
    """How a space is searched. What is best, and for ASHA too, is `checkpoints.metric`."""

    __pydantic_config__ = STRICT

    trials: int = 16
    """Draws of the random leaves; a grid is walked whole for each."""
    concurrent: int | None = None
    """Trials at a time at most; without it as many as the cluster holds."""
    grace: int = 100_000
    """Images that every trial may see before ASHA stops those that lag."""
    reduction: int = 3
    """ASHA keeps one in so many at each rung."""
    seed: int = 0
    """Of the draws."""
    driver_cpus: float = 0.5
    """Reserved for the process that drives a trial."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, "trials", self.trials, "a whole number >= 1")
        require(
            self.concurrent is None or self.concurrent >= 1, "concurrent", self.concurrent, "a number >= 1, or null"
        )
        require(self.grace >= 1, "grace", self.grace, "a number of images >= 1")
        require(self.reduction >= 2, "reduction", self.reduction, "a whole number >= 2")
        require(self.driver_cpus >= 0, "driver_cpus", self.driver_cpus, "a number >= 0")


class Distribution(NamedTuple):
    """A leaf that differs between trials."""

    kind: str
    values: tuple[object, ...]
    """Low and high of a range, or all there are."""

    @property
    def tried(self) -> tuple[object, ...]:
        """Values that must make valid settings: of a range also one inside, which a whole number can't be."""
        if self.kind not in {"uniform", "loguniform"}:
            return self.values
        low, high = self.values
        assert isinstance(low, int | float) and isinstance(high, int | float)
        return low, high, low + (high - low) * 0.437


class Space(NamedTuple):
    """A sweep, taken apart."""

    search: Search
    base: Tree
    """Settings, the first value of each distribution in its place."""
    leaves: dict[str, Distribution]
    """Dotted path -> distribution."""

    @property
    def trials(self) -> int:
        """Trials in all."""
        return self.search.trials * prod(len(leaf.values) for leaf in self.leaves.values() if leaf.kind == "grid")


def take_apart(tree: Tree) -> Space:
    """A sweep's tree -> its space. Every end of every distribution must make valid settings. Raises Mistake."""
    tree = dict(tree)
    search = _search(tree.pop("search", {}))
    leaves = _leaves(tree)
    if not leaves:
        raise Mistake("nothing to search: give some setting a distribution, such as beta: {loguniform: [0.1, 10]}")
    base = filled(tree, {path: leaf.values[0] for path, leaf in leaves.items()})
    for path, leaf in leaves.items():
        if not path.startswith(SEARCHED):
            raise Mistake(f"{path} can't differ between trials; {', '.join(name.rstrip('.') for name in SEARCHED)} can")
        for value in leaf.tried:
            parse(filled(base, {path: value}))
    return Space(search, base, leaves)


def filled(tree: Tree, values: Mapping[str, object]) -> Tree:
    """Settings with these values, by dotted path, in their places: those of one trial."""
    for path, value in values.items():
        tree = _replaced(tree, path, value)
    return tree


def _replaced(tree: Tree, path: str, value: object) -> Tree:
    head, _, rest = path.partition(".")
    if not rest:
        return {**tree, head: value}
    below = tree[head]
    assert isinstance(below, dict)
    return {**tree, head: _replaced(below, rest, value)}


def _search(section: object) -> Search:
    try:
        return TypeAdapter(Search).validate_python(section, strict=False)
    except ValidationError as error:
        raise Mistake(explain(error.errors()[0], Search, "search")) from None


def _leaves(tree: Mapping[str, object], prefix: str = "") -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            continue
        if len(value) == 1 and next(iter(value)) in DISTRIBUTIONS:
            found[path] = _distribution(path, *next(iter(value.items())))
        else:
            found |= _leaves(value, f"{path}.")
    return found


def _distribution(path: str, kind: str, values: object) -> Distribution:
    listed = tuple(values) if isinstance(values, list) else ()
    if kind in {"choice", "grid"}:
        holds, expected = bool(listed), "a list of values, such as [1, 2, 4]"
    else:
        numbers = [value for value in listed if isinstance(value, int | float) and not isinstance(value, bool)]
        holds = len(numbers) == len(listed) == 2 and numbers[0] < numbers[1]
        holds = holds and (kind == "uniform" or numbers[0] > 0)
        expected = "[low, high] with low < high" + (", both > 0" if kind == "loguniform" else "")
    if not holds:
        raise Mistake(f"{path} is {{{kind}: {values}}}; expected {kind} of {expected}")
    return Distribution(kind, listed)
