"""The trials of a search: a table, best first, and each searched number against the metric."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.references import Found
from pipeline.report.charts import scatter
from pipeline.report.figures import titled
from pipeline.report.markup import Html, section, tabled, tag
from pipeline.rundir import ended
from pipeline.settings import flatten
from pipeline.table import cell


def search_section(trials: Sequence[Found]) -> Html:
    """Trials that were evaluated, best first."""
    metric = trials[0].settings.checkpoints.metric
    chosen = [flatten(trial.record["settings"]) for trial in trials]
    paths = [path for path in chosen[0] if path != "name" and any(one.get(path) != chosen[0][path] for one in chosen)]
    figures = [trial.checkpoint.figures[metric] for trial in trials]
    rows = [
        [
            trial.directory.name,
            *(cell(values.get(path)) for path in paths),
            f"{trial.checkpoint.images_seen:,}",
            f"{figure:.4g}",
            (ended(trial.directory) or "cut off").lower(),
        ]
        for trial, values, figure in zip(trials, chosen, figures, strict=True)
    ]
    charts = []
    for path in paths:
        points = [
            (value, figure)
            for values, figure in zip(chosen, figures, strict=True)
            if isinstance(value := values.get(path), int | float)
        ]
        if len(points) > 1:
            charts.append(scatter(path, titled(metric), points))
    return section(
        "Search",
        tag("p", f"This is the best of {len(trials)} trials of {Path(trials[0].directory).parent.name}, by {metric}."),
        tabled(["trial", *paths, "images seen", metric, "ended"], rows),
        tag("div", *charts, class_="charts"),
    )
