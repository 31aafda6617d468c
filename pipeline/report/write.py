"""`vaegan report`: find what a run is to be compared with, and write its page."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import Mistake
from pipeline.references import Found, find, is_model, locate, ranked
from pipeline.report.figures import Side
from pipeline.report.markup import Html
from pipeline.report.page import page
from pipeline.report.search import search_section
from pipeline.report.story import Story, read
from pipeline.rundir import write_atomically
from pipeline.settings import Settings, dump, flatten
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint


def report(ref: str, home: Path, out: Path | None, against: Sequence[str]) -> None:
    """Write the report of a run, or of a search's best trial, as one HTML file. Raises Mistake."""
    story, trials = _story(ref, home)
    sides, remarks = _sides(story, home, against)
    search = search_section(trials) if trials else Html()
    path = out or story.directory / "report.html"
    try:
        write_atomically(path, page(story, sides, search, remarks))
    except OSError as error:
        raise Mistake(f"--out is {str(path)!r}: {error.strerror or error}") from None
    print(f"{os.path.relpath(path)}: {path.stat().st_size / 2**20:.1f} MB, opens in any browser")


def _story(ref: str, home: Path) -> tuple[Story, list[Found]]:
    """The run that a REF names; of a search its best trial, and all its trials that were evaluated, best first."""
    if is_model(ref):
        raise Mistake(f"{ref} is a registered model; name the run it came from, and the model with --against")
    directory, record = locate(ref, home)
    if record["kind"] == "run":
        return read(directory, record), []
    found = ranked(sorted(directory.glob("trial-*")))
    trials = [trial for trial in found if trial.settings.checkpoints.metric in trial.checkpoint.figures]
    if not trials:
        raise Mistake(f"{ref}: no trial of this search has been evaluated yet")
    return read(trials[0].directory, trials[0].record), trials


def _sides(story: Story, home: Path, against: Sequence[str]) -> tuple[list[Side], list[str]]:
    """The run's figures, then those to compare them with; and what a reader should know of these."""
    if not story.evaluated:
        return [], ["There are no figures: no checkpoint has been evaluated yet."]
    best, newest = story.evaluated[0], max(story.evaluated, key=lambda checkpoint: checkpoint.images_seen)
    sides = [_side("best", best, story.settings)]
    if newest != best:
        sides.append(_side("newest", newest, None))
    remarks = []
    for ref in dict.fromkeys([*_champion(story), *against]):
        if not is_model(ref):
            sides.append(_run(ref, home))
            continue
        from pipeline.registry.versions import version_of  # MLflow: seconds

        try:
            version = version_of(ref, story.record["tracking_uri"])
        except Mistake as mistake:
            if ref in against:
                raise
            remarks.append(f"There is no champion to compare with: {mistake}.")
            continue
        if version.checkpoint == checkpoints.digest(best.path):
            remarks.append(f"{ref}, version {version.number}, is this run's best checkpoint.")
        else:
            sides.append(Side(ref.removeprefix("models:/"), f"version {version.number}", version.evaluation))
    return sides, remarks


def _champion(story: Story) -> list[str]:
    """Of the model that the run was to be registered as."""
    model = story.settings.register
    return [] if model is None else [f"models:/{model}@champion"]


def _run(ref: str, home: Path) -> Side:
    found = find(ref, home)
    if not found.checkpoint.figures:
        raise Mistake(f"--against {ref}: no checkpoint of this run has been evaluated yet")
    return _side(ref, found.checkpoint, found.settings)


def _side(label: str, checkpoint: Checkpoint, settings: Settings | None) -> Side:
    assert checkpoint.evaluation is not None
    about = f"{checkpoint.images_seen:,} images"
    return Side(label, about, checkpoint.evaluation, flatten(dump(settings)) if settings else {})
