"""Small charts as inline SVG: crisp on paper, coloured by the page's style, no script."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, log10
from typing import NamedTuple

from pipeline.evaluation.curves import Panel, Series, wide
from pipeline.report.markup import Html, tag, together

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 10, 176
"""Of the field that the curves are in; y counts downwards."""
DOTS = 24
"""A curve of so many points shows each."""


class Scale(NamedTuple):
    """From values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of the lowest value."""
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (map(log10, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """At most six round numbers."""
        if self.log:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**k for k in decades for m in mantissas if self.low <= m * 10.0**k <= self.high]
                if len(found) <= 6:
                    break
            return found[:: ceil(len(found) / 6) or 1]
        rough = (self.high - self.low) / 5
        size = 10.0 ** floor(log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
        return [step * n for n in range(ceil(self.low / step), floor(self.high / step) + 1)]


def scale(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.05) -> Scale:
    """One that holds all values, with room at both ends."""
    values = list(values)
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** room if high > low else 2.0
        return Scale(low / factor, high * factor, start, end, log=True)
    margin = (high - low) * room if high > low else abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, start, end)


def chart(panel: Panel) -> Html:
    """A panel with its legend."""
    across = scale([0.0, *(x for series in panel.series for x, _ in series.points)], LEFT, RIGHT, room=0.0)
    up = scale(panel.levels, BOTTOM, TOP, log=panel.log)
    keys = [
        tag("span", tag("i", class_=f"key s{n}"), series.label, " ", tag("b", short(series.points[-1][1])))
        for n, series in enumerate(panel.series)
    ]
    unit = f"{panel.unit}{', ' if panel.unit and panel.log else ''}{'log' if panel.log else ''}"
    return tag(
        "figure",
        tag("figcaption", tag("strong", panel.title), " ", tag("small", unit), tag("div", *keys, class_="keys")),
        drawing(
            _axes(across, up),
            *(_guide(level, label, up) for level, label in panel.guides),
            *(_curve(series, f"s{n}", across, up) for n, series in enumerate(panel.series)),
            label=f"{panel.title} over images seen",
        ),
        class_="chart",
    )


def drawing(*parts: Html, label: str) -> Html:
    """An SVG as wide as the page lets it."""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def short(value: float) -> str:
    """A number in four digits at most; thousands as k."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _axes(across: Scale, up: Scale) -> Html:
    rows = [
        together(
            tag("line", x1=f"{LEFT}", x2=f"{RIGHT}", y1=f"{up(tick)}", y2=f"{up(tick)}", class_="rule"),
            tag("text", short(tick), x=f"{LEFT - 6}", y=f"{up(tick) + 3.5}", text_anchor="end"),
        )
        for tick in up.ticks()
    ]
    columns = [
        tag("text", short(tick), x=f"{across(tick)}", y=f"{BOTTOM + 16}", text_anchor="middle")
        for tick in across.ticks()
    ]
    return together(*rows, *columns)


def _guide(level: float, label: str, up: Scale) -> Html:
    y = up(level)
    return together(
        tag("line", x1=f"{LEFT}", x2=f"{RIGHT}", y1=f"{y}", y2=f"{y}", class_="guide"),
        tag("text", label, x=f"{RIGHT}", y=f"{y - 4}", text_anchor="end", class_="guide"),
    )


def _curve(series: Series, style: str, across: Scale, up: Scale) -> Html:
    line = tag("polyline", points=" ".join(f"{across(x)},{up(y)}" for x, y in series.points), class_=style)
    return together(line, *(dots(series.points, style, across, up) if len(series.points) <= DOTS else ()))


def dots(points: Sequence[tuple[float, float]], style: str, across: Scale, up: Scale) -> list[Html]:
    """Points that tell their value when pointed at."""
    return [
        tag("circle", tag("title", f"{short(x)}: {y:.4g}"), cx=f"{across(x)}", cy=f"{up(y)}", r="2.5", class_=style)
        for x, y in points
    ]


def scatter(across_label: str, up_label: str, points: Sequence[tuple[float, float]]) -> Html:
    """What came of each value of a setting."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across, up = scale(xs, LEFT, RIGHT, log=wide(xs)), scale(ys, BOTTOM, TOP, log=wide(ys))
    return tag(
        "figure",
        tag("figcaption", tag("strong", up_label), " ", tag("small", f"against {across_label}")),
        drawing(_axes(across, up), *dots(points, "s0", across, up), label=f"{up_label} against {across_label}"),
        class_="chart",
    )
