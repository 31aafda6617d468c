"""A training command from start to end: tracker, cluster, run, summary, registration."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.cluster import cluster, require_room
from pipeline.data.manifest import Manifest
from pipeline.progress import progress_line
from pipeline.rundir import locked, open_record, require_same_identity
from pipeline.settings import Settings, dump, identity
from pipeline.table import print_table
from pipeline.tracking import Sink, Tracker, connect, run_id, store_uri
from pipeline.training import launch
from pipeline.training.launch import Outcome
from pipeline.training.start import Start


def train_one(settings: Settings, start: Start) -> Outcome:
    """Train a run and tell how it went. Raises Mistake or Failure."""
    directory = Path(settings.home).absolute() / settings.name
    manifest = _checked(settings, directory)
    start.lap("imports")
    with tracked(settings, directory) as begin_tracking, cluster() as own:
        require_room(settings, own)
        start.lap("cluster")
        begin_tracking()
        start.lap("tracker")
        with locked(directory):
            open_record(directory, launch.record_of(settings, manifest, launch.tags()))
            with progress_line(directory, settings.name, settings.stop.images):
                outcome = launch.run(settings, directory, start)
    summarise(settings, outcome)
    if settings.register is not None:
        from pipeline.registry.register import register

        register(settings.name, settings.register, Path(settings.home))
    return outcome


def dry_run(settings: Settings) -> None:
    """Find what would be wrong with a run, and print its settings in full. Raises Mistake."""
    manifest = _checked(settings, Path(settings.home) / settings.name)
    YAML().dump(dump(settings), sys.stdout)
    print(f"# nothing wrong: {manifest.rows('train'):,} images of {manifest.shape} to train on")


def _checked(settings: Settings, directory: Path) -> Manifest:
    """The data of a run, once all has been looked at that shows before Ray starts. Raises Mistake."""
    manifest = launch.preflight(settings)
    require_same_identity(directory, identity(settings, manifest.digest))
    launch.require_measurable(settings)
    return manifest


@contextmanager
def tracked(settings: Settings, directory: Path) -> Iterator[Callable[[], None]]:
    """Everything that is journalled below a folder goes to the tracker, while it lasts and once more at the end.

    The tracker is called in the background. What is yielded waits for its answer and then begins; it raises Mistake
    where none comes.
    """
    if settings.tracking.offline:
        yield lambda: None
        return
    with ThreadPoolExecutor(1) as background, ExitStack() as sinks:
        tracker = background.submit(connect, store_uri(settings), settings.tracking.experiment)
        yield lambda: sinks.enter_context(_sink(directory, tracker.result()))


@contextmanager
def _sink(directory: Path, tracker: Tracker) -> Iterator[None]:
    sink = Sink(directory, tracker)
    try:
        yield
    finally:
        left = sink.close()
        if left:
            print(
                f"{left} events wait for the tracker in {directory}: `vaegan tracking sync` sends them", file=sys.stderr
            )


def summarise(settings: Settings, outcome: Outcome) -> None:
    """How a run ended, its best and its newest checkpoint, and where to look."""
    shown = {"best": outcome.best} | ({} if outcome.newest == outcome.best else {"newest": outcome.newest})
    names = [name for name in outcome.best.figures if name in outcome.newest.figures]
    rows = [["images seen", *(f"{checkpoint.images_seen:,}" for checkpoint in shown.values())]]
    rows += [
        [name.removeprefix("eval/"), *(f"{checkpoint.figures[name]:.4g}" for checkpoint in shown.values())]
        for name in names
    ]
    print(f"\n{settings.name}: {outcome.why}; best by {settings.checkpoints.metric}")
    print_table(["checkpoint", *shown], rows)
    print(f"best checkpoint: {os.path.relpath(outcome.best.path)}")
    print(f"pictures:        {os.path.relpath(outcome.directory / 'pictures')}")
    found = run_id(outcome.directory)
    if found is not None:
        print(f"tracked as:      runs:/{found}")
    print(f"look at it:      {ui_command(settings)}")


def ui_command(settings: Settings) -> str:
    """What opens the tracker's pages."""
    uri = store_uri(settings)
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite") else f"a browser at {uri}"
