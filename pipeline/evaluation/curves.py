"""A run's curves: the points of its journal, sorted into panels that a person reads."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, log
from typing import NamedTuple

from PIL import Image

from pipeline.evaluation.plots import blank, rendered
from pipeline.evaluation.words import word
from pipeline.rundir import Event

Points = Sequence[tuple[float, float]]
"""(images seen, value), in order."""

MOST_POINTS = 300
"""A curve of more is drawn as the means of so many stretches."""


class Series(NamedTuple):
    """A line of a panel."""

    label: str
    points: Points


class Panel(NamedTuple):
    """A small chart over the images seen."""

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    guides: tuple[tuple[float, str], ...] = ()
    """Levels to compare with, and what they are."""

    @property
    def levels(self) -> list[float]:
        """Every value in it."""
        return [value for series in self.series for _, value in series.points] + [level for level, _ in self.guides]

    @property
    def log(self) -> bool:
        """Whether its scale is logarithmic."""
        return wide(self.levels)


def points_of(events: Iterable[Event]) -> dict[str, Points]:
    """Every metric of a journal by name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        for name, value in event.body.items() if event.kind == "metrics" else ():
            curves.setdefault(name, []).append((event.step, float(str(value))))
    return dict(curves)


def wide(values: Sequence[float]) -> bool:
    """Whether values want a logarithmic scale: they differ much, as at the start of a run, and are above 0."""
    return min(values) > 0 and max(values) > 20 * min(values)


def panels(points: Mapping[str, Points]) -> list[Panel]:
    """The curves of a journal, those of one meaning in one panel. What never changes is left out."""
    grouped: dict[str, list[Series]] = {}
    for name, curve in points.items():
        key, label = _place(name)
        finite = [point for point in curve if isfinite(point[1])]
        if key and (key.startswith("eval") or len({value for _, value in finite}) > 1):
            grouped.setdefault(key, []).append(Series(label, thinned(finite)))
    return [_panel(key, tuple(series)) for key, series in grouped.items()]


def drawn(shown: Sequence[Panel], columns: int = 4) -> Image.Image:
    """All panels as one picture."""
    rows = -(-len(shown) // columns)
    figure = blank(4 * columns, 2.6 * rows)
    for number, panel in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(f"{panel.title}, {panel.unit}" if panel.unit else panel.title, fontsize=9)
        for series in panel.series:
            axes.plot(*zip(*series.points, strict=True), label=series.label, linewidth=1.2)
        for level, _ in panel.guides:
            axes.axhline(level, color="grey", linewidth=0.8, linestyle="--")
        axes.set_yscale("log" if panel.log else "linear")
        axes.legend(fontsize=7, frameon=False)
        axes.tick_params(labelsize=7)
    return rendered(figure)


def thinned(curve: Points) -> Points:
    """The same curve in at most 300 points, each the mean of a stretch."""
    size = -(-len(curve) // MOST_POINTS)
    stretches = [curve[start : start + size] for start in range(0, len(curve), max(size, 1))]
    return [(sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in stretches]


def _place(name: str) -> tuple[str, str]:
    """The panel a metric belongs to, and what its line is called; no panel for what is no curve."""
    match name.split("/"):
        case ["eval", metric, of]:
            return f"eval/{metric}", of
        case ["train", player, "gradient_norm" | "penalty" as term]:
            return f"train/{term}", player
        case ["train", "discriminator", "logit_real" | "logit_fake" as term]:
            return "train/logits", term.removeprefix("logit_")
        case ["train", "discriminator", term]:
            return "train/discriminator", term
        case ["train", player, term]:
            return f"train/{term}", player
        case ["schedule" | "health", what]:
            return name, what
        case ["speed", "images_per_s"]:
            return name, "images/s"
    return "", ""


def _panel(key: str, series: tuple[Series, ...]) -> Panel:
    match key:
        case "train/discriminator":
            return Panel(key, "discriminator's loss", "nats", series, ((log(2), "balance, ln 2"),))
        case "train/logits":
            return Panel(key, "discriminator's logits", "", series, ((0.0, ""),))
    described, extractor = word(key.rpartition("/")[2])
    return Panel(key, described.title, ", ".join(filter(None, (described.unit, extractor))), series)
