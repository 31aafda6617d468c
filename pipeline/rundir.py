"""What a run leaves on disk, and the two files that tie it together.

    runs/<name>/
        run.json             who this run is: settings, identity, lineage; written by the driver
        journal.jsonl        what happened, one event a line; appended by rank 0, then by the driver
        tracking.json        how much of the journal the tracker has (`pipeline.tracking`)
        images-000123456/    checkpoints (`pipeline.training.checkpoints`)
        pictures/            of its models and its curves, named by images seen

The journal is written before anything is sent anywhere: a tracker that is down costs nothing and loses nothing.
"""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from pipeline.errors import Mistake
from pipeline.settings import Tree, flatten

RUN, JOURNAL, PICTURES = "run.json", "journal.jsonl", "pictures"


class Record(TypedDict):
    """`run.json`."""

    name: str
    key: str
    """Unique for ever; the tracker's run carries it as a tag."""
    parent: str | None
    """Folder of the search this run is a trial of, relative to its own."""
    kind: Literal["run", "search"]
    created_ms: int
    settings: dict[str, object]
    identity: dict[str, object]
    """Dotted path -> value of everything that makes it this run."""
    data: dict[str, str]
    """Path, digest and source of the data set."""
    tracking_uri: str
    experiment: str
    tags: dict[str, str]


class Event(NamedTuple):
    """One line of a journal."""

    time_ms: int
    step: int
    """Images seen."""
    kind: str
    """`metrics`, `picture`, `note`, `warning` or `status`."""
    body: dict[str, object]


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old text or the new, never half of either."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def new_record(
    settings: Tree,
    identity: Tree,
    data: dict[str, str],
    tracking_uri: str,
    tags: dict[str, str],
    parent: str | None = None,
    kind: Literal["run", "search"] = "run",
) -> Record:
    """The record of a run that starts now."""
    return Record(
        name=str(settings["name"]),
        key=uuid.uuid4().hex,
        parent=parent,
        kind=kind,
        created_ms=time.time_ns() // 1_000_000,
        settings=settings,
        identity=identity,
        data=data,
        tracking_uri=tracking_uri,
        experiment=str(flatten(settings)["tracking.experiment"]),
        tags=tags,
    )


def open_record(directory: Path, record: Record) -> Record:
    """Create a run's record, or continue the one that is there. Raises Mistake where that one is another run."""
    require_same_identity(directory, record["identity"])
    found = read_record(directory)
    if found is None:
        directory.mkdir(parents=True, exist_ok=True)
    else:
        kept = {"key": found["key"], "created_ms": found["created_ms"]}
        record = record | kept  # type: ignore[assignment]
    write_atomically(directory / RUN, json.dumps(record, indent=2) + "\n")
    return record


def read_record(directory: Path) -> Record | None:
    """The record of a run, None where there is none. Raises Mistake where it is damaged."""
    path = directory / RUN
    try:
        record: Record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise Mistake(f"{path} is damaged; restore it, or choose another name for this run") from None
    return record


def ended(directory: Path) -> str | None:
    """How a run ended, by the last status in its journal; None while it runs or where it was cut off."""
    statuses = [event.body["text"] for event, _ in read_journal(directory, 0) if event.kind == "status"]
    return None if not statuses or statuses[-1] == "RUNNING" else str(statuses[-1])


def run_directories(root: Path) -> Iterator[Path]:
    """A run or every run of a home, and the trials of each: parents first."""
    if (root / RUN).exists():
        yield root
    for run in sorted(root.glob(f"*/{RUN}")):
        yield run.parent
        yield from sorted(trial.parent for trial in run.parent.glob(f"*/{RUN}"))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have a run's folder to oneself. Raises Mistake where another process that lives has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"{directory} is in use: this run is going on already; wait for it, or stop it") from None
        yield


class Journal:
    """Appends events, each in one write: one process at a time, whose threads may append beside each other.

    A run that resumes from a checkpoint lives through some images again: points it has written before are not written
    twice, so the tracker holds each once.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / JOURNAL
        _end_torn_line(self._path)
        self._last: dict[str, int] = {}
        for event, _ in read_journal(directory, 0):
            for name in _names(event.kind, event.body):
                self._last[name] = event.step

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves."""
        self._append(step, "metrics", {name: value for name, value in values.items() if self._is_new(name, step)})

    def picture(self, step: int, key: str, path: Path) -> None:
        """A PNG below the run's folder."""
        body: dict[str, object] = {"key": key, "path": str(path.relative_to(self._path.parent))}
        if self._is_new(f"picture {key}", step):
            self._append(step, "picture", body)

    def note(self, step: int, kind: str, text: str, why: str = "") -> None:
        """A `note` or `warning` for people, or a `status`."""
        self._append(step, kind, {"text": text} | ({"why": why} if why else {}))

    def _is_new(self, name: str, step: int) -> bool:
        return step > self._last.get(name, -1)

    def _append(self, step: int, kind: str, body: Mapping[str, object]) -> None:
        if not body:
            return
        line = json.dumps([time.time_ns() // 1_000_000, step, kind, body]) + "\n"
        with self._path.open("a") as file:
            file.write(line)


def read_journal(directory: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """The whole events behind a byte offset, each with the offset behind it; a line still being written is left."""
    try:
        file = (directory / JOURNAL).open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            with suppress(ValueError, TypeError):  # a torn or damaged line is lost; the rest is not
                yield Event(*json.loads(line)), offset


def _names(kind: str, body: Mapping[str, object]) -> list[str]:
    match kind:
        case "metrics":
            return list(body)
        case "picture":
            return [f"picture {body['key']}"]
    return []


def _end_torn_line(path: Path) -> None:
    """A process killed while it wrote leaves half a line, which the next event must not be glued to.

    Nothing is cut off: another process may be writing.
    """
    if not path.exists():
        return
    with path.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")


def require_same_identity(directory: Path, wanted: Mapping[str, object]) -> None:
    """Raise Mistake where a folder holds another run than the one of this identity, both values shown."""
    record = read_record(directory)
    if record is None:
        return
    found = record["identity"]
    differing = [path for path in {**found, **wanted} if found.get(path) != wanted.get(path)]
    if differing:
        path = differing[0]
        more = f" (and {len(differing) - 1} more settings)" if len(differing) > 1 else ""
        raise Mistake(
            f"{path} is {wanted.get(path)!r}, but {directory} was started with {found.get(path)!r}{more}; "
            "choose another name for the new run, or remove that folder"
        )
