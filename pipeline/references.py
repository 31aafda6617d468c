"""REF: one grammar for models and runs.

A name of a run or search, runs:/ID, the folder of a checkpoint in a run's; models:/NAME@ALIAS, models:/NAME/N.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import Mistake
from pipeline.rundir import RUN, Record, read_record, run_directories
from pipeline.settings import Settings, parse
from pipeline.tracking import run_id
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint


class Found(NamedTuple):
    """The checkpoint that a REF leads to."""

    directory: Path
    record: Record
    settings: Settings
    checkpoint: Checkpoint


def is_model(ref: str) -> bool:
    """Whether a REF names a registered model."""
    return ref.startswith("models:/")


def find(ref: str, home: Path) -> Found:
    """The best checkpoint of a run or of a search's best trial, or the one named. Raises Mistake for none."""
    if is_checkpoint(ref):
        return _named(Path(ref))
    runs = runs_of(ref, home)
    found = ranked(runs)
    if not found:
        for run in runs:
            checkpoints.verify_all(run)
        raise Mistake(f"{ref} has no checkpoint yet: let it train until checkpoints.every images")
    return found[0]


def is_checkpoint(ref: str) -> bool:
    """Whether a REF is the folder of a checkpoint in that of its run."""
    path = Path(ref)
    return path.name.startswith(checkpoints.PREFIX) and (path.parent / RUN).exists()


def runs_of(ref: str, home: Path) -> list[Path]:
    """The folder of a run, or those of a search's trials. Raises Mistake where there is none."""
    directory, record = locate(ref, home)
    return [directory] if record["kind"] == "run" else sorted(directory.glob("trial-*"))


def locate(ref: str, home: Path) -> tuple[Path, Record]:
    """The folder and the record of a run or a search. Raises Mistake where there is none."""
    if ref.startswith("runs:/"):
        wanted = ref.removeprefix("runs:/")
        for directory in run_directories(home):
            if run_id(directory) == wanted and (record := read_record(directory)) is not None:
                return directory, record
        raise Mistake(f"{ref}: no run below {home} is tracked under that id; name another home with --home")
    record = read_record(home / ref)
    if record is None:
        names = [directory.relative_to(home).as_posix() for directory in run_directories(home)]
        nearest = difflib.get_close_matches(ref, names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise Mistake(f"there is no run {ref!r} in {home}{hint or ': name another home with --home'}")
    return home / ref, record


def ranked(directories: Iterable[Path]) -> list[Found]:
    """The best checkpoint of each run that has one, best first; the runs of one search share a metric."""
    found = [best for directory in directories if (best := _best(directory)) is not None]
    return sorted(found, key=lambda one: checkpoints.rank(one.checkpoint, one.settings.checkpoints.metric))


def _best(directory: Path) -> Found | None:
    found = _found(directory)
    return min(found, key=lambda one: checkpoints.rank(one.checkpoint, one.settings.checkpoints.metric), default=None)


def _named(path: Path) -> Found:
    for one in _found(path.parent):
        if one.checkpoint.path == path:
            return one
    checkpoints.verify(path)
    raise Mistake(f"{path} is not a checkpoint: it has no readable {checkpoints.STATE}")


def _found(directory: Path) -> list[Found]:
    """All checkpoints of a run, oldest first."""
    record = read_record(directory)
    if record is None:
        return []
    settings = parse(record["settings"])
    return [Found(directory, record, settings, one) for one in checkpoints.listed(directory)]
