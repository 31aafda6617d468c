"""The page: a run from how it ended down to its settings. Nothing in it points anywhere: it opens without a network."""

import base64
import re
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median

from pipeline.evaluation.curves import Panel, panels
from pipeline.evaluation.words import word
from pipeline.report.charts import chart, short
from pipeline.report.figures import Side, floor_of, table, titled
from pipeline.report.markup import Html, tag, together
from pipeline.report.story import Story
from pipeline.settings import Settings, dump, flatten

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser that is told so asks for nothing, whatever might slip in."""

PASSWORD = re.compile(r"//[^/@\s]+@")
"""In the address of a tracker, say: reports are passed on."""

FIRST = ("eval/psnr", "train/", "schedule/", "health/logit_gap", "speed/")
"""Curves shown at once, after that of the metric; the others unfold."""

CAPTIONS = {
    "samples": "Samples: draws from the prior.",
    "reconstructions": "Reconstructions, each below its original.",
    "interpolations": "Interpolations: from one held-out image to another, straight through the latent space.",
    "traversals": "Traversals: one held-out image, one latent unit a row moved from -3 to 3; the most active first.",
    "neighbours": "Learnt by heart? The samples closest to a training image, each beside its nearest training images.",
}


def page(story: Story, sides: Sequence[Side], search: Html, remarks: Sequence[str]) -> Html:
    """The whole document. sides: this run's figures, then those to compare with; search: a section on it, if any."""
    name = story.record["name"]
    style = Html((files("pipeline") / "report" / "style.css").read_text())
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · vaegan"),
        tag("style", style),
    )
    main = tag(
        "main",
        _header(story, sides),
        _warnings(story, sides),
        _figures(sides, remarks),
        _pictures(story),
        _curves(story, sides),
        search,
        _settings(story, sides),
        _lineage(story),
        _journal(story),
    )
    whole = together(Html("<!doctype html>\n"), tag("html", head, tag("body", main), lang="en"))
    return Html(PASSWORD.sub("//***@", whole))


def section(title: str, *inside: Html) -> Html:
    """A part of the page under its heading; nothing where it would be empty."""
    return tag("section", tag("h2", title), *inside) if any(inside) else Html()


def fold(title: str, *inside: Html) -> Html:
    """What unfolds when asked for."""
    return tag("details", tag("summary", title), *inside)


def _header(story: Story, sides: Sequence[Side]) -> Html:
    settings, record = story.settings, story.record
    objective, networks = settings.objective, settings.networks
    about = (
        f"A VAE-GAN of {networks.family} networks with {networks.latent} latents, trained on "
        f"{record['data']['source']}: {objective.schedule} schedule, {objective.likelihood.kind} likelihood "
        f"on {objective.reconstruction}, β {objective.beta:g}, λ {objective.lambda_:g}."
    )
    began = record["created_ms"]
    ended = story.events[-1].time_ms if story.events else began
    status, why = story.ending
    when = " · ".join(filter(None, (_date(began), _span(ended - began), f"{story.images_seen:,} images seen", why)))
    return tag(
        "header",
        tag("p", "vaegan run", class_="eyebrow"),
        tag("h1", record["name"], " ", tag("span", status.lower(), class_=f"status {status.lower()}")),
        tag("p", about, class_="lead"),
        tag("p", when, class_="when"),
        _tiles(story, sides),
    )


def _tiles(story: Story, sides: Sequence[Side]) -> Html:
    """The figures a reader looks for first."""
    if not sides:
        return Html()
    evaluation, metric = sides[0].evaluation, story.settings.checkpoints.metric
    wanted = (metric, "eval/psnr/reconstructions", "eval/active_units/latents", "eval/nelbo/images")
    tiles = []
    for name in dict.fromkeys(wanted):
        if name in evaluation.figures:
            floor = floor_of(evaluation, name)
            under = word(name.split("/")[1])[0].unit if floor is None else f"real images: {floor:.4g}"
            tiles.append(_tile(f"{evaluation.figures[name]:.4g}", titled(name), under))
    speeds = [value for _, value in story.points.get("speed/images_per_s", ())]
    if speeds:
        tiles.append(_tile(short(median(speeds)), "images per second", "median"))
    return tag("div", *tiles, class_="tiles")


def _tile(value: str, title: str, under: str) -> Html:
    return tag("div", tag("b", value), tag("span", title), tag("small", under))


def _warnings(story: Story, sides: Sequence[Side]) -> Html:
    signs = ", ".join(sides[0].evaluation.health) if sides else ""
    shown = [tag("p", f"Shown by the best checkpoint: {signs}.")] if signs else []
    warnings = story.of_kind("warning")
    lines = [tag("li", f"{event.body['text']} ", tag("small", f"at {event.step:,} images")) for event in warnings]
    return tag("aside", tag("h2", "Signs of trouble"), *shown, tag("ul", *lines)) if lines or signs else Html()


def _figures(sides: Sequence[Side], remarks: Sequence[str]) -> Html:
    return section(
        "Figures", *([table(sides)] if sides else ()), *(tag("p", remark, class_="note") for remark in remarks)
    )


def _pictures(story: Story) -> Html:
    """Samples as the run went on, then everything else of the best checkpoint."""
    pictures = story.pictures
    best = story.evaluated[0].images_seen if story.evaluated else -1
    drawn = []
    if "samples" in pictures:
        moments = _moments(sorted(pictures["samples"]), best)
        over_time = [
            _figure(pictures["samples"][step], f"{', '.join(names)}: {step:,} images")
            for step, names in moments.items()
        ]
        drawn += [tag("p", CAPTIONS["samples"]), tag("div", *over_time, class_="gallery over-time")]
    others = []
    for key, steps in pictures.items():
        if key not in {"samples", "curves"}:
            step = best if best in steps else max(steps)
            others.append(_figure(steps[step], CAPTIONS.get(key, key)))
    return section("Pictures", *drawn, tag("div", *others, class_="gallery") if others else Html())


def _moments(steps: Sequence[int], best: int) -> Mapping[int, list[str]]:
    """First, middle, best and newest of the steps that have a picture: step -> what it is, in order."""
    named = [("first", steps[0]), ("middle", steps[len(steps) // 2]), ("newest", steps[-1])]
    if best in steps:
        named.append(("best", best))
    moments: dict[int, list[str]] = {}
    for name, step in sorted(named, key=lambda one: one[1]):
        moments.setdefault(step, []).append(name)
    return moments


def _figure(path: Path, caption: str) -> Html:
    data = base64.b64encode(path.read_bytes()).decode()
    return tag("figure", tag("img", src=f"data:image/png;base64,{data}", alt=caption), tag("figcaption", caption))


def _curves(story: Story, sides: Sequence[Side]) -> Html:
    metric = story.settings.checkpoints.metric.rpartition("/")[0]
    drawn = [panel._replace(guides=panel.guides + _levels(panel, story, sides)) for panel in panels(story.points)]
    first = [panel for prefix in (metric, *FIRST) for panel in drawn if panel.key.startswith(prefix)]
    others = [panel for panel in drawn if panel not in first]
    charts = tag("div", *map(chart, first), class_="charts") if first else Html()
    more = fold(f"{len(others)} more", tag("div", *map(chart, others), class_="charts")) if others else Html()
    return section("Curves", *([tag("p", "Over the images seen.")] if drawn else ()), charts, more)


def _levels(panel: Panel, story: Story, sides: Sequence[Side]) -> tuple[tuple[float, str], ...]:
    """What a curve of health is judged by, and what real images would reach."""
    threshold = flatten(story.record["settings"]).get(panel.key.replace("/", "."))
    if panel.key.startswith("health/") and isinstance(threshold, int | float):
        return ((threshold, "threshold"),)
    floor = floor_of(sides[0].evaluation, f"{panel.key}/samples") if sides else None
    return () if floor is None else ((floor, "real images"),)


def _settings(story: Story, sides: Sequence[Side]) -> Html:
    """What differs from the defaults or from the runs compared with; then all."""
    own, default = flatten(dump(story.settings)), flatten(dump(Settings(name=story.settings.name)))
    others = [side for side in sides[1:] if side.settings]
    heads = ["setting", "this run", "default", *(side.label for side in others)]
    rows = {
        path: [value, default.get(path), *(side.settings.get(path) for side in others)]
        for path, value in own.items()
        if path not in {"name", "home"}
    }
    differing = {path: values for path, values in rows.items() if any(value != values[0] for value in values)}
    return section(
        "Settings",
        tag("p", "What differs from the defaults" + (" or between these runs." if others else ".")),
        tabled(heads, [_setting(path, values) for path, values in differing.items()]),
        fold("All settings", tabled(heads[:2], [_setting(path, values[:1]) for path, values in rows.items()])),
    )


def _setting(path: str, values: Sequence[object]) -> list[str]:
    """A row; a value that is this run's again is faint."""
    own, *others = map(shown, values)
    return [tag("code", path), own, *(tag("span", one, class_="faint") if one == own else one for one in others)]


def tabled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Rows under their heads; the first cell of a row is its name."""
    top = tag("tr", *(tag("th", head, scope="col") for head in heads))
    body = [tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells)) for name, *cells in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="wide")


def shown(value: object) -> str:
    """A setting's value."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _lineage(story: Story) -> Html:
    record = story.record
    tags = dict(record["tags"])
    commit = tags.pop("mlflow.source.git.commit", "unknown")
    dirty = ", with files changed" if tags.pop("vaegan.git_dirty", "") == "true" else ""
    workers = [str(event.body["text"]) for event in story.of_kind("note") if " workers, " in str(event.body["text"])]
    facts = {
        "command": tags.pop("vaegan.command", "unknown"),
        "commit": commit + dirty,
        "data": f"{record['data']['source']} at {record['data']['path']}, sha256 {record['data']['digest']}",
        "workers": "; ".join(workers),
        "checkpoints kept": ", ".join(f"{checkpoint.images_seen:,}" for checkpoint in story.kept) or "none",
        "tracker": record["tracking_uri"],
        "key": record["key"],
    } | {name.removeprefix("vaegan.").removeprefix("version."): value for name, value in tags.items()}
    pairs = [together(tag("dt", name), tag("dd", value)) for name, value in facts.items() if value]
    return section("Lineage", tag("dl", *pairs))


def _journal(story: Story) -> Html:
    """What was noted on the way."""
    rows = [
        [_date(event.time_ms), f"{event.step:,}", event.kind, ": ".join(map(str, event.body.values()))]
        for event in story.of_kind("note", "warning", "status")
    ]
    return section("Notes", fold(f"{len(rows)} notes", tabled(["when", "images seen", "", ""], rows)))


def _date(time_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))


def _span(time_ms: int) -> str:
    """A length of time, in two units."""
    minutes, seconds = divmod(round(time_ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
