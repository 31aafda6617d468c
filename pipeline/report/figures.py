"""The table of figures: this run's beside a floor, a champion and other runs, in groups measured the same way."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.evaluation.protocol import Evaluation, Protocol, how, told
from pipeline.evaluation.words import word
from pipeline.report.markup import Html, tag, together
from pipeline.settings import EXTRACTORS, FACTORS, better, rankable

QUALITY = frozenset({*rankable(EXTRACTORS, "gaussian"), *(f"eval/{kind}/latents" for kind in FACTORS)})
"""Figures of which one can say that they are better."""


class Side(NamedTuple):
    """A column."""

    label: str
    about: str
    evaluation: Evaluation
    settings: Mapping[str, object] = {}
    """Dotted path -> value, where they are known."""


def table(sides: Sequence[Side]) -> Html:
    """The figures of the first side, with what the others have of them; the best of those comparable is marked."""
    own = sides[0].evaluation
    common = _common([_how(own, name) for name in own.figures])
    groups: dict[str, list[str]] = {}
    for name in own.figures:
        groups.setdefault(told(_without(_how(own, name), common)), []).append(name)
    heads = [("figure", ""), *((side.label, side.about) for side in sides), ("floor", "real against real")]
    whole = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", label, tag("small", about), scope="col") for label, about in heads))),
        *(
            tag("tbody", _how_row(line, len(heads)), *(_row(name, sides) for name in names))
            for line, names in groups.items()
        ),
    )
    measured = tag("p", f"Measured with {told(common)}.") if common else Html()
    notes = [tag("p", note, class_="note") for note in _differences(sides)]
    return together(measured, tag("div", whole, class_="wide figures"), *notes)


def titled(name: str) -> str:
    """What `eval/<metric>/<of>` is called."""
    _, metric, of = name.split("/")
    title = word(metric)[0].title
    return f"{title} of {of}" if of in {"samples", "reconstructions"} else title


def floor_of(evaluation: Evaluation, name: str) -> float | None:
    """The same figure of real images against real ones."""
    floor = evaluation.protocols.get(name, {}).get("floor")
    return None if floor is None else float(floor)


def _how_row(line: str, columns: int) -> Html:
    return tag("tr", tag("th", line, colspan=f"{columns}", scope="rowgroup"), class_="protocol") if line else Html()


def _row(name: str, sides: Sequence[Side]) -> Html:
    own = sides[0].evaluation
    meaning, floor = word(name.split("/")[1])[0].meaning, floor_of(own, name)
    way = {"min": "↓", "max": "↑"}[better(name)] if name in QUALITY else ""
    title = tag("th", titled(name), tag("i", way), tag("small", tag("code", name)), scope="row", title=meaning)
    best = _best(name, sides)
    cells = [_cell(name, side.evaluation, own, best) for side in sides]
    fewer = own.protocols.get(name, {}).get("floor_samples")
    under = Html() if fewer is None else tag("small", f"of {fewer:,} images")
    return tag("tr", title, *cells, tag("td", "" if floor is None else f"{floor:.4g}", " ", under, class_="faint"))


def _best(name: str, sides: Sequence[Side]) -> float | None:
    """Of those comparable with the first; None where there is nothing to compare."""
    wanted = _how(sides[0].evaluation, name)
    comparable = [side.evaluation for side in sides if _how(side.evaluation, name) == wanted]
    values = {one.figures[name] for one in comparable if name in one.figures}
    if len(values) < 2 or name not in QUALITY:
        return None
    return min(values) if better(name) == "min" else max(values)


def _cell(name: str, evaluation: Evaluation, own: Evaluation, best: float | None) -> Html:
    if name not in evaluation.figures:
        return tag("td")
    value = evaluation.figures[name]
    if _how(evaluation, name) != _how(own, name):
        return tag("td", f"{value:.4g}*", class_="faint")
    noise = evaluation.protocols.get(name, {}).get("noise")
    spread = Html() if noise is None else tag("small", f"± {float(noise):.2g}")
    return tag("td", tag("b", f"{value:.4g}") if value == best else f"{value:.4g}", " ", spread)


def _differences(sides: Sequence[Side]) -> list[str]:
    """Why figures of a side are not comparable: the first difference of each side."""
    own, lines = sides[0].evaluation, []
    for side in sides[1:]:
        for name in filter(side.evaluation.figures.__contains__, own.figures):
            here, there = _how(own, name), _how(side.evaluation, name)
            if here != there:
                common = _common([here, there])
                apart = [told(_without(one, common)) or "nothing told" for one in (there, here)]
                lines.append(f"* {side.label} was measured otherwise: {name} with {apart[0]}; here {apart[1]}.")
                break
    return lines


def _how(evaluation: Evaluation, name: str) -> Protocol:
    return how(evaluation.protocols.get(name, {}))


def _common(protocols: Sequence[Protocol]) -> Protocol:
    """What they all say."""
    return {key: value for key, value in protocols[0].items() if all(one.get(key) == value for one in protocols)}


def _without(protocol: Protocol, common: Protocol) -> Protocol:
    return {key: value for key, value in protocol.items() if key not in common}
