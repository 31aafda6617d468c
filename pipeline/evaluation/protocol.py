"""What an evaluation found and how: a figure without its protocol does not exist."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

Value = str | int | float | None
Protocol = Mapping[str, Value]
"""How a figure came about: extractor, data, split, counts, seed; what has no meaning for a figure is left out.

Beside that `floor`, the same figure of real images against real ones; `floor_samples`, how many it has in the place of
samples, where it has fewer; and `noise`, the figure's standard error over other draws.
"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one checkpoint."""

    figures: Mapping[str, float]
    """`eval/<metric>/<of>` -> value."""
    protocols: Mapping[str, Protocol]
    """The same names -> how each figure came about."""
    health: tuple[str, ...] = ()
    """Signs of trouble in the training that led here."""

    def to_json(self) -> dict[str, object]:
        """As `evaluation.json` holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, object]) -> "Evaluation":
        """Back from `to_json`; what else the tree holds is left."""
        return cls(
            figures=tree["figures"],  # type: ignore[arg-type]
            protocols=tree["protocols"],  # type: ignore[arg-type]
            health=tuple(tree.get("health", ())),  # type: ignore[arg-type]
        )


def how(protocol: Protocol) -> dict[str, Value]:
    """What must be equal for two figures to be comparable."""
    return {key: value for key, value in protocol.items() if key not in {"floor", "floor_samples", "noise"}}


def beside(protocol: Protocol) -> tuple[str, str]:
    """A figure's noise and floor in words, empty where there is none."""
    noise, floor, fewer = (protocol.get(key) for key in ("noise", "floor", "floor_samples"))
    counted = "" if fewer is None else f" of {fewer:,} images"
    return "" if noise is None else f"{noise:.2g}", "" if floor is None else f"{floor:.3g}{counted}"


def told(protocol: Protocol) -> str:
    """A protocol in a line, hashes cut short."""
    return ", ".join(
        f"{key} {str(value)[:12] if key in {'data', 'weights'} else value}" for key, value in protocol.items()
    )
