"""The page: a run from how it ended down to its settings. Nothing in it points anywhere: it opens without a network."""

from collections.abc import Sequence
from importlib.resources import files
from statistics import median

from pipeline.evaluation.words import word
from pipeline.lineage import redacted
from pipeline.report.charts import short
from pipeline.report.curves import curves_section
from pipeline.report.figures import Side, floor_of, table, titled
from pipeline.report.gallery import gallery
from pipeline.report.markup import Html, date, section, tag, together
from pipeline.report.origin import lineage_section, notes_section, settings_section
from pipeline.report.story import Story
from pipeline.settings import RECONSTRUCTION

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser that is told so asks for nothing, whatever might slip in."""


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
        gallery(story),
        curves_section(story, sides),
        search,
        settings_section(story, sides),
        lineage_section(story),
        notes_section(story),
    )
    whole = together(Html("<!doctype html>\n"), tag("html", head, tag("body", main), lang="en"))
    return Html(redacted(whole))  # a report is passed on


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
    facts = [date(began), _lasted(ended - began), f"{story.images_seen:,} images seen"]
    if why and not why.endswith("images seen"):
        facts.append(why)
    return tag(
        "header",
        tag("p", "vaegan run", class_="eyebrow"),
        tag("h1", record["name"], " ", tag("span", status.lower(), class_=f"status {status.lower()}")),
        tag("p", about, class_="lead"),
        tag("p", " · ".join(facts), class_="when"),
        _tiles(story, sides),
    )


def _tiles(story: Story, sides: Sequence[Side]) -> Html:
    """The figures a reader looks for first."""
    if not sides:
        return Html()
    evaluation, metric = sides[0].evaluation, story.settings.checkpoints.metric
    wanted = (metric, RECONSTRUCTION, "eval/active_units/latents", "eval/nelbo/images")
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
    return tag("aside", tag("h2", "Warnings"), *shown, tag("ul", *lines)) if lines or signs else Html()


def _figures(sides: Sequence[Side], remarks: Sequence[str]) -> Html:
    return section(
        "Figures", *([table(sides)] if sides else ()), *(tag("p", remark, class_="note") for remark in remarks)
    )


def _lasted(time_ms: int) -> str:
    """A length of time, in two units."""
    minutes, seconds = divmod(round(time_ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
