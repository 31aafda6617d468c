"""The curves of a run beside what they are to be judged by."""

from collections.abc import Sequence

from pipeline.evaluation.curves import Panel, panels
from pipeline.report.charts import chart
from pipeline.report.figures import Side, floor_of
from pipeline.report.markup import Html, fold, section, tag
from pipeline.report.story import Story
from pipeline.settings import flatten

FIRST = ("eval/psnr", "train/", "schedule/", "health/logit_gap", "speed/")
"""Curves shown at once, after that of the metric; the others unfold."""


def curves_section(story: Story, sides: Sequence[Side]) -> Html:
    """Those that are looked at first, and the others."""
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
