"""A search command from start to end: preflight, trials, table."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.cluster import cluster, require_room, require_state_api
from pipeline.data import manifest as manifests
from pipeline.errors import Failure
from pipeline.progress import search_line
from pipeline.references import ranked
from pipeline.registry.register import register
from pipeline.rundir import (
    Journal,
    Record,
    ended,
    locked,
    new_record,
    open_record,
    require_same_identity,
)
from pipeline.settings import RECONSTRUCTION, Settings, Tree, dump, flatten, merge, parse, read_tree
from pipeline.table import cell, print_table
from pipeline.tracking import store_uri
from pipeline.training import launch
from pipeline.training.session import tracked, ui_command
from pipeline.tuning import search
from pipeline.tuning.space import Space, filled, take_apart


def search_all(config: str, overrides: Sequence[str]) -> None:
    """Run a sweep's trials, or go on with them, and show how they did. Raises Mistake or Failure."""
    space = _rooted(take_apart(read_tree(config, overrides)))
    settings = parse(space.base)
    directory = Path(settings.home) / settings.name
    manifest = launch.preflight(settings)
    require_same_identity(directory, _identity(space, manifest.digest))
    launch.require_measurable(settings)
    with tracked(settings, directory) as begin_tracking, cluster() as own:
        concurrent = _concurrent(space, settings, own)
        begin_tracking()
        with locked(directory):
            record = open_record(directory, _record(space, settings, manifest))
            journal = Journal(directory)
            journal.note(0, "status", "RUNNING")
            with search_line(directory, settings, space.trials):
                search.fit(space, directory, concurrent, record["tags"])
            statuses = [ended(trial) for trial in sorted(directory.glob("trial-*"))]
            done = sum(status in {"FINISHED", "FAILED"} for status in statuses)
            journal.note(0, "status", "FINISHED" if done == space.trials else "KILLED")
    _summarise(space, settings, directory)
    _require_success(statuses, done, space.trials)
    if settings.register is not None:
        register(settings.name, settings.register, Path(settings.home))


def _require_success(statuses: Sequence[str | None], done: int, trials: int) -> None:
    """Raise Failure for a search that was cut off, or of which nothing is left."""
    failed = statuses.count("FAILED")
    if failed:
        print(f"{failed} trials failed, see above; the same command tries them again")
    if done < trials:
        raise Failure(f"{done} of {trials} trials ended; the same command goes on with the rest")
    if failed == trials:
        raise Failure("every trial failed")


def _rooted(space: Space) -> Space:
    """Trials run in other folders, perhaps on other hosts: places are made absolute, the tracker resolved."""
    settings = parse(space.base)
    places: Tree = {
        "home": str(Path(settings.home).absolute()),
        "data": {"path": manifests.absolute(settings.data.path)},
        "tracking": {"uri": store_uri(settings)},
    }
    return space._replace(base=merge(space.base, places))


def _concurrent(space: Space, settings: Settings, own: bool) -> int:
    """Trials at a time, said aloud with what one needs. Raises Mistake where not one fits."""
    require_state_api()
    room = require_room(settings, own, space.search.driver_cpus)
    concurrent = min(room, space.search.concurrent or room, space.trials)
    workers = settings.workers
    gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
    print(
        f"{settings.name}: {space.trials} trials over {', '.join(space.leaves)}; one takes {workers.count} workers of "
        f"{workers.cpus:g} CPUs{gpus} and {space.search.driver_cpus:g} CPUs for its driver: {room} fit, "
        f"{concurrent} at a time"
    )
    return concurrent


def _identity(space: Space, digest: str) -> Tree:
    """A search is another one when its settings, its space or its rules change; not for more room."""
    base = {key: value for key, value in space.base.items() if key not in {"workers", "tracking", "home"}}
    rules = {key: value for key, value in asdict(space.search).items() if key not in {"concurrent", "driver_cpus"}}
    return flatten(merge(_with_distributions(base, space), {"search": rules, "data": {"digest": digest}}))


def _with_distributions(tree: Tree, space: Space) -> Tree:
    """A tree that shows each distribution in its place, as text."""
    return filled(tree, {path: f"{leaf.kind} {list(leaf.values)}" for path, leaf in space.leaves.items()})


def _record(space: Space, settings: Settings, manifest: manifests.Manifest) -> Record:
    shown = merge(_with_distributions(dump(settings), space), {"search": asdict(space.search)})
    return new_record(
        shown,
        _identity(space, manifest.digest),
        launch.data_of(settings, manifest),
        store_uri(settings),
        launch.tags(),
        kind="search",
    )


def _summarise(space: Space, settings: Settings, directory: Path) -> None:
    """The trials, best first, and where to look."""
    metric = settings.checkpoints.metric
    figures = list(dict.fromkeys([metric, RECONSTRUCTION]))
    rows = []
    for trial, record, _, best in ranked(sorted(directory.glob("trial-*"))):
        chosen = flatten(record["settings"])
        values = [cell(chosen[path]) for path in space.leaves]
        measured = [f"{best.figures[name]:.4g}" if name in best.figures else "" for name in figures]
        rows.append([trial.name, *values, f"{best.images_seen:,}", *measured, (ended(trial) or "cut off").lower()])
    print(f"\n{settings.name}: best first, by {metric}")
    titles = [name.removeprefix("eval/") for name in figures]
    print_table(["trial", *space.leaves, "images seen", *titles, "ended"], rows)
    print(f"register the best: vaegan register {settings.name} --name NAME")
    print(f"look at it:        {ui_command(settings)}")
