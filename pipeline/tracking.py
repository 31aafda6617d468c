"""From the journals on disk to the tracker: in the background while a run lives, or later by `vaegan tracking sync`.

Training writes a journal and never talks to the tracker. `push` sends what a journal holds beyond the offset that
`tracking.json` remembers, and moves the offset only when the tracker has taken it. A crash in between sends some points
again, with their first timestamps; MLflow keeps a point once per (key, timestamp, step, value).
"""

import fcntl
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

from pipeline.errors import Mistake
from pipeline.lineage import redacted
from pipeline.rundir import Event, Record, read_journal, read_record, run_directories, write_atomically
from pipeline.settings import Settings, flatten

STATE, LOCK = "tracking.json", ".tracking.lock"
BATCH = 1_000
"""Points a request may carry, MLflow's own limit."""


class Point(NamedTuple):
    """One point of a curve."""

    key: str
    value: float
    time_ms: int
    step: int


class State(TypedDict):
    """`tracking.json`."""

    tracker: str
    """Which one this is about: an id means nothing to another."""
    run_id: str | None
    offset: int
    """Bytes of the journal that the tracker has."""


class Tracker(Protocol):
    """Where runs are tracked."""

    def open_run(self, record: Record, parent_id: str | None) -> str:
        """The id of the run with this record's key, created where there is none."""
        ...

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Add points, each once."""
        ...

    def log_picture(self, run_id: str, path: Path, key: str, step: int) -> None:
        """Add an image to a gallery."""
        ...

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        ...


@dataclass
class MemoryTracker:
    """A tracker for tests."""

    runs: dict[str, str] = field(default_factory=dict)
    points: dict[str, set[Point]] = field(default_factory=dict)
    pictures: list[tuple[str, str, int]] = field(default_factory=list)
    status: dict[str, str] = field(default_factory=dict)

    def open_run(self, record: Record, parent_id: str | None) -> str:
        return self.runs.setdefault(record["key"], record["name"])

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        self.points.setdefault(run_id, set()).update(points)

    def log_picture(self, run_id: str, path: Path, key: str, step: int) -> None:
        self.pictures.append((run_id, key, step))

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        self.status[run_id] = status


class MlflowTracker:
    """MLflow, a server or a database."""

    def __init__(self, uri: str, experiment: str) -> None:
        prepare_mlflow()
        from mlflow import MlflowClient

        self.uri = uri
        self._client = MlflowClient(uri)
        self._experiment = experiment

    def experiment_id(self) -> str:
        """Of our experiment, created where there is none; also the proof that the tracker answers."""
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment, artifact_location=artifacts_of(self.uri)))

    def open_run(self, record: Record, parent_id: str | None) -> str:
        experiment = self.experiment_id()
        found = self._client.search_runs([experiment], f"tags.`vaegan.key` = '{record['key']}'", max_results=1)
        if found:
            known = str(found[0].info.run_id)
            if not found[0].data.params:  # the tracker died before it was described
                self._describe(known, record)
            return known
        tags = record["tags"] | {"vaegan.key": record["key"], "vaegan.kind": record["kind"]}
        if parent_id is not None:
            tags["mlflow.parentRunId"] = parent_id
        run = self._client.create_run(experiment, record["created_ms"], tags, record["name"])
        run_id = str(run.info.run_id)
        self._describe(run_id, record)
        return run_id

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.time_ms, p.step) for p in points])

    def log_picture(self, run_id: str, path: Path, key: str, step: int) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._client.log_image(run_id, image, key=key, step=step)

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status, time_ms)

    def _describe(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        data = record["data"]
        dataset = Dataset(
            name=Path(data["path"]).name,
            digest=data["digest"][:36],  # MLflow's limit
            source_type="vaegan",
            source=redacted(
                json.dumps({"path": data["path"], "prepared_from": data["source"], "sha256": data["digest"]})
            ),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        params = [Param(path, redacted(str(value))) for path, value in flatten(record["settings"]).items()]
        self._client.log_batch(run_id, params=params)  # last: where they are, all is


def prepare_mlflow() -> None:
    """Before MLflow is imported: patience in seconds, and few words."""
    # a dead server must cost seconds, not MLflow's default of minutes: the journal waits, we try again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def store_uri(settings: Settings) -> str:
    """The tracker that settings name: their own, the environment's, or sqlite under the home."""
    return settings.tracking.uri or registry_of(Path(settings.home))


def registry_of(home: Path) -> str:
    """Where registered models are looked for: the environment's tracker, or the database under a home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store(home)


def local_store(home: Path) -> str:
    """The database under a home."""
    return f"sqlite:///{home.absolute()}/mlflow.db"


def require_store(ref: str, uri: str) -> None:
    """Before MLflow is asked for a model: it would make a database that isn't there. Raises Mistake."""
    prepare_mlflow()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise Mistake(f"{ref}: no registry at {uri}; name its home with --home, or its server with MLFLOW_TRACKING_URI")


def artifacts_of(uri: str) -> str | None:
    """Where files of runs go: beside a database of our own, else wherever the server keeps them."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts").as_uri()


def connect(uri: str, experiment: str) -> MlflowTracker:
    """An MLflow that answers. Raises Mistake where none does."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        tracker = MlflowTracker(uri, experiment)
        tracker.experiment_id()
    except Exception as error:
        raise Mistake(
            f"tracking.uri is {uri!r}: no MLflow answers there ({_brief(error)}); start it, name another with "
            "--set tracking.uri=..., or go on without it: --set tracking.offline=true, and `vaegan tracking sync` later"
        ) from None
    return tracker


def push(directory: Path, tracker: Tracker) -> int:
    """Send what the tracker has not had of one run. Returns the events sent; raises whatever the tracker raises."""
    record = read_record(directory)
    if record is None:
        return 0
    with _only_pusher(directory) as alone:
        return _push(directory, record, tracker) if alone else 0


def sync(home: Path) -> None:
    """Push every run below a home to the tracker it was started with, and say what was sent.

    Raises Mistake at the end, when everything that could be sent is, for what could not.
    """
    trackers: dict[tuple[str, str], MlflowTracker] = {}
    troubles, runs = [], 0
    for directory in run_directories(home):
        try:
            record = read_record(directory)
            if record is None or not waiting(directory):
                continue
            address = (record["tracking_uri"], record["experiment"])
            if address not in trackers:
                trackers[address] = connect(*address)
            runs += 1
            print(f"{directory}: {push(directory, trackers[address])} events sent to {record['tracking_uri']}")
        except Exception as error:  # one run's trouble must not keep the others waiting
            troubles.append(f"{directory}: {error if isinstance(error, Mistake) else _brief(error)}")
    if troubles:
        raise Mistake("; ".join(troubles))
    if not runs:
        print(f"nothing waits below {home}")


def waiting(directory: Path) -> int:
    """Events the tracker has not had."""
    return sum(1 for _ in read_journal(directory, _state(directory)["offset"]))


def run_id(directory: Path) -> str | None:
    """The tracker's id of a run, None until it has one."""
    return _state(directory)["run_id"]


class Sink:
    """Pushes every journal below a folder from a background thread. It can't stop a run, nor slow it."""

    def __init__(self, root: Path, tracker: Tracker, interval_s: float = 1.0) -> None:
        self._root = root
        self._tracker = tracker
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._troubled = False
        self._damaged: set[Path] = set()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 20.0) -> int:
        """A last attempt, for so long at most. Returns the events that still wait on disk."""
        self._closing.set()
        self._thread.join(timeout_s)
        return sum(waiting(directory) for directory in run_directories(self._root))

    def _work(self) -> None:
        pause = self._interval_s
        while not self._closing.wait(pause):
            pause = self._interval_s if self._attempt() else min(2 * pause, 30.0)
        self._attempt()

    def _attempt(self) -> bool:
        try:
            for directory in run_directories(self._root):
                self._push(directory)
        except Exception as error:  # whatever a tracker does, training goes on
            if not self._troubled:
                _say(f"tracker: {_brief(error)}; training goes on, its metrics wait on disk")
            self._troubled = True
            return False
        if self._troubled:
            _say("tracker: back")
        self._troubled = False
        return True

    def _push(self, directory: Path) -> None:
        try:
            push(directory, self._tracker)
        except Mistake as mistake:  # a damaged record, which is not the tracker's fault: the other runs go on
            if directory not in self._damaged:
                _say(str(mistake))
            self._damaged.add(directory)


def _push(directory: Path, record: Record, tracker: Tracker) -> int:
    state, address = _state(directory), f"{record['experiment']} at {record['tracking_uri']}"
    if state["tracker"] != address:
        state = State(tracker=address, run_id=None, offset=0)
    run = state["run_id"]
    if run is None:
        parent_id = None if record["parent"] is None else run_id((directory / record["parent"]).resolve())
        run = state["run_id"] = tracker.open_run(record, parent_id)
        _remember(directory, state)
    sent = 0
    for events, offset in _batches(directory, state["offset"]):
        _send(directory, run, events, tracker)
        state["offset"] = offset
        _remember(directory, state)
        sent += len(events)
    return sent


def _batches(directory: Path, offset: int) -> Iterator[tuple[list[Event], int]]:
    """Runs of metrics that fit one request; anything else alone."""
    events: list[Event] = []
    points = 0
    for event, after in read_journal(directory, offset):
        size = len(event.body) if event.kind == "metrics" else BATCH
        if events and points + size > BATCH:
            yield events, offset
            events, points = [], 0
        events.append(event)
        points += size
        offset = after
    if events:
        yield events, offset


def _send(directory: Path, run: str, events: Sequence[Event], tracker: Tracker) -> None:
    match events[0]:
        case Event(kind="metrics"):
            tracker.log_points(run, [point for event in events for point in _points(event)])
        case Event(kind="picture", step=step, body={"path": str(path), "key": str(key)}):
            if (directory / path).exists():
                tracker.log_picture(run, directory / path, key, step)
        case Event(kind="status", time_ms=time_ms, body={"text": str(status)}):
            tracker.set_status(run, status, time_ms)


def _points(event: Event) -> Iterator[Point]:
    for key, value in event.body.items():
        assert isinstance(value, int | float)
        yield Point(key, float(value), event.time_ms, event.step)


def _state(directory: Path) -> State:
    try:
        state: State = json.loads((directory / STATE).read_text())
        return state
    except (FileNotFoundError, ValueError):
        return State(tracker="", run_id=None, offset=0)


def _remember(directory: Path, state: State) -> None:
    write_atomically(directory / STATE, json.dumps(state))


@contextmanager
def _only_pusher(directory: Path) -> Iterator[bool]:
    """Two processes may want to push the same journal; one does."""
    with (directory / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr)
