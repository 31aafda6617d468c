"""What an evaluation found and how: a figure without its protocol does not exist."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

Protocol = Mapping[str, str | int | float | None]
"""How a figure came about: extractor, data, split, counts, seed; what has no meaning for a figure is left out."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one checkpoint."""

    figures: Mapping[str, float]
    """`eval/<metric>/<of>` -> value."""
    protocols: Mapping[str, Protocol]
    """The same names -> how each figure came about."""

    def to_json(self) -> dict[str, object]:
        """As `evaluation.json` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, object]) -> "Evaluation":
        """Back from `to_json`; what else the tree holds is left."""
        return cls(figures=tree["figures"], protocols=tree["protocols"])  # type: ignore[arg-type]
