"""The tracker gets every event once, whatever it does in between, and training never waits for it."""

import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipeline.evaluation import pictures
from pipeline.rundir import Journal, Record, read_record
from pipeline.settings import flatten
from pipeline.tracking import (
    BATCH,
    STATE,
    MemoryTracker,
    MlflowTracker,
    Point,
    Sink,
    connect,
    push,
    run_id,
    sync,
    waiting,
)
from tests.pipeline.small import events, record, tiny


class Ledger(MemoryTracker):
    """The twin, which also keeps what came in the order it came, twice where it came twice."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[list[Point]] = []
        self.parents: list[tuple[str, str | None]] = []
        self.statuses: list[str] = []

    @property
    def taken(self) -> list[Point]:
        return [point for request in self.requests for point in request]

    def open_run(self, record: Record, parent_id: str | None) -> str:
        self.parents.append((record["name"], parent_id))
        return super().open_run(record, parent_id)

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        super().log_points(run_id, points)
        self.requests.append(list(points))

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        super().set_status(run_id, status, time_ms)
        self.statuses.append(status)


class Down(Exception):
    pass


class Unsteady(Ledger):
    """Fails at one call; `late`: when it has already taken what it was sent."""

    def __init__(self, fails_at: int, late: bool) -> None:
        super().__init__()
        self.calls = 0
        self.fails_at = fails_at
        self.late = late

    def open_run(self, record: Record, parent_id: str | None) -> str:
        self._fail(early=True)
        opened = super().open_run(record, parent_id)
        self._fail(early=False)
        return opened

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        self._fail(early=True)
        super().log_points(run_id, points)
        self._fail(early=False)

    def log_picture(self, run_id: str, path: Path, key: str, step: int) -> None:
        self._fail(early=True)
        super().log_picture(run_id, path, key, step)
        self._fail(early=False)

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        self._fail(early=True)
        super().set_status(run_id, status, time_ms)
        self._fail(early=False)

    def _fail(self, *, early: bool) -> None:
        self.calls += early
        if self.calls == self.fails_at and early != self.late:
            raise Down("the tracker\nis away")


def written(directory: Path, steps: int = 6) -> list[Point]:
    """A journal with every kind of event. Returns its points."""
    journal = Journal(directory)
    journal.note(0, "note", "1 workers, from the start")
    journal.note(0, "status", "RUNNING")
    for step in range(1, steps + 1):
        journal.metrics(step, {"train/a": step / 2, "train/b": -step})
        if step % 3 == 0:
            picture = pictures.save(pictures.grid(torch.rand(1, 1, 8, 8), 1), directory / "pictures" / f"{step}.png")
            journal.picture(step, "samples", picture)
    journal.note(steps, "status", "FINISHED")
    return [
        Point(key, float(str(value)), event.time_ms, event.step)
        for event in events(directory)
        if event.kind == "metrics"
        for key, value in event.body.items()
    ]


@pytest.fixture
def directory(tmp_path: Path, digits: str) -> Path:
    record(tiny(digits, tmp_path))
    return tmp_path / "tiny"


def test_everything_is_sent_once(directory):
    points, tracker = written(directory), Ledger()
    assert waiting(directory) == len(events(directory))
    assert push(directory, tracker) == len(events(directory))
    assert tracker.taken == points
    assert tracker.pictures == [("tiny", "samples", 3), ("tiny", "samples", 6)]
    assert tracker.statuses == ["RUNNING", "FINISHED"]
    assert run_id(directory) == "tiny"
    assert waiting(directory) == 0


def test_nothing_is_sent_again(directory):
    tracker = Ledger()
    written(directory)
    push(directory, tracker)
    taken, pictures_ = tracker.taken, list(tracker.pictures)
    assert push(directory, tracker) == 0
    assert (tracker.taken, tracker.pictures, tracker.parents) == (taken, pictures_, [("tiny", None)])


def test_what_is_written_later_is_sent_later(directory):
    tracker, journal = Ledger(), Journal(directory)
    for step in range(1, 4):
        journal.metrics(step, {"a": step})
        assert push(directory, tracker) == 1
    assert [(point.key, point.value, point.step) for point in tracker.taken] == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3)]


def test_a_folder_that_is_no_run_has_nothing_to_send(tmp_path):
    assert push(tmp_path, Ledger()) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("fails_at", range(1, 8))
def test_a_tracker_that_fails_anywhere_has_every_point_once_in_the_end(directory, fails_at, late):
    points, tracker = written(directory), Unsteady(fails_at, late)
    with pytest.raises(Down):
        push(directory, tracker)
    assert waiting(directory) > 0
    push(directory, tracker)
    assert waiting(directory) == 0
    assert tracker.points["tiny"] == set(points)
    assert set(tracker.pictures) == {("tiny", "samples", 3), ("tiny", "samples", 6)}
    assert tracker.status == {"tiny": "FINISHED"}
    if not late:  # what was not taken is sent once, and what was taken is not sent again
        assert tracker.taken == points
        assert len(tracker.pictures) == 2


def test_there_are_as_many_calls_as_the_failures_above_try(directory):
    tracker = Unsteady(0, late=False)
    written(directory)
    push(directory, tracker)
    assert tracker.calls == 7  # a run, two statuses, two lots of points, two pictures


def test_a_request_holds_as_many_points_as_a_tracker_takes(directory):
    journal, tracker = Journal(directory), Ledger()
    for step in range(700):
        journal.metrics(step, {"a": 1.0, "b": 2.0, "c": 3.0})
    push(directory, tracker)
    assert BATCH == 1000
    assert [len(request) for request in tracker.requests] == [999, 999, 102]


def test_a_trial_is_opened_under_its_search(tmp_path, digits):
    search = tiny(digits, tmp_path, {"name": "search"})
    record(search, kind="search")
    trial = tiny(digits, tmp_path / "search", {"name": "trial-00000"})
    record(trial, parent="..")
    tracker = Ledger()
    Sink(tmp_path / "search", tracker).close()
    assert tracker.parents == [("search", None), ("trial-00000", "search")]


def test_two_pushers_at_once_send_everything_once(directory):
    points = written(directory, steps=40)

    class Slow(Ledger):
        def log_points(self, run_id: str, points: Sequence[Point]) -> None:
            time.sleep(0.005)
            super().log_points(run_id, points)

    tracker = Slow()
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(10)
        deadline = time.monotonic() + 10
        while waiting(directory) and time.monotonic() < deadline:
            push(directory, tracker)
            time.sleep(0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert tracker.taken == points
    assert len(tracker.pictures) == 13
    assert len(tracker.parents) == 1


def test_a_sink_sends_while_it_is_open_and_has_sent_all_when_it_is_closed(directory):
    tracker = Ledger()
    sink = Sink(directory.parent, tracker, interval_s=0.01)
    points = written(directory)
    deadline = time.monotonic() + 10
    while waiting(directory) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tracker.taken == points
    journal = Journal(directory)
    journal.metrics(100, {"a": 1})
    assert sink.close() == 0
    assert len(tracker.taken) == len(points) + 1


def test_a_sink_finds_runs_that_start_after_it(tmp_path, digits):
    tracker = Ledger()
    sink = Sink(tmp_path / "home", tracker, interval_s=0.01)
    record(tiny(digits, tmp_path / "home"))
    points = written(tmp_path / "home" / "tiny")
    assert sink.close() == 0
    assert tracker.taken == points


def test_a_sink_outlives_a_dead_tracker_and_says_so_once(directory, capsys):
    class Dead(Ledger):
        def log_points(self, run_id: str, points: Sequence[Point]) -> None:
            raise Down("the tracker\nis away")

    written(directory)
    sink = Sink(directory.parent, Dead(), interval_s=0.001)
    time.sleep(0.1)
    left = sink.close()
    assert left == waiting(directory) > 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("tracker: Down: the tracker is away; training goes on, its metrics wait on disk")


def test_a_sink_sends_what_waited_when_the_tracker_is_back(directory, capsys):
    points, tracker = written(directory), Unsteady(3, late=True)
    sink = Sink(directory.parent, tracker, interval_s=0.001)
    deadline = time.monotonic() + 10
    while waiting(directory) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sink.close() == 0
    assert tracker.points["tiny"] == set(points)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2].split(":")[0] + line[-4:] for line in lines] == ["trackerdisk", "trackerback"]


def test_a_sink_does_not_wait_for_a_tracker_that_hangs(directory):
    answer = threading.Event()

    class Hanging(Ledger):
        def log_points(self, run_id: str, points: Sequence[Point]) -> None:
            answer.wait(30)

    written(directory)
    sink = Sink(directory.parent, Hanging(), interval_s=0.001)
    started = time.monotonic()
    left = sink.close(timeout_s=0.2)
    assert time.monotonic() - started < 5
    assert left > 0
    answer.set()


@pytest.mark.parametrize("text", ["", "{", '{"offset'])
def test_a_damaged_offset_sends_again_under_the_same_run(directory, text):
    points, tracker = written(directory), Ledger()
    push(directory, tracker)
    (directory / STATE).write_text(text)
    assert push(directory, tracker) == len(events(directory))
    assert tracker.points == {"tiny": set(points)}


def test_one_damaged_run_does_not_keep_the_others_from_the_tracker(tmp_path, digits):
    for name in ("a", "b", "c"):
        record(tiny(digits, tmp_path, {"name": name}))
    expected = {name: set(written(tmp_path / name)) for name in ("a", "c")}
    (tmp_path / "b" / "run.json").write_text("{")
    tracker = Ledger()
    Sink(tmp_path, tracker, interval_s=0.01).close()
    assert tracker.points == expected


def arrived(tracker: MlflowTracker, run: str, key: str) -> list[tuple[float, int, int]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracker.uri).get_metric_history(run, key)
    return sorted((metric.value, metric.timestamp, metric.step) for metric in history)


@pytest.mark.cluster
def test_mlflow_gets_all_of_a_run_and_a_replay_adds_no_point(tmp_path, digits, store):
    from mlflow import MlflowClient

    record(tiny(digits, tmp_path, {"name": "search"}), uri=store, kind="search")
    settings = tiny(digits, tmp_path / "search", {"name": "trial-00000"})
    record(settings, uri=store, parent="..")
    directory = tmp_path / "search" / "trial-00000"
    points = written(directory)
    tracker = connect(store, "vaegan")
    for folder in (directory.parent, directory):
        push(folder, tracker)
    opened, client = run_id(directory), MlflowClient(store)
    assert opened is not None
    run = client.get_run(opened)
    made = read_record(directory)
    assert made is not None
    assert run.data.params == {path: str(value) for path, value in flatten(made["settings"]).items()}
    assert run.data.tags["vaegan.key"] == made["key"]
    assert run.data.tags["vaegan.command"] == "vaegan train"
    assert run.data.tags["mlflow.parentRunId"] == run_id(directory.parent)
    assert (run.info.run_name, run.info.status, run.info.start_time) == ("trial-00000", "FINISHED", made["created_ms"])
    assert run.info.end_time == events(directory)[-1].time_ms
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", made["data"]["digest"][:36])
    assert json.loads(given.dataset.source)["sha256"] == made["data"]["digest"]
    for key in ("train/a", "train/b"):
        expected = sorted((point.value, point.time_ms, point.step) for point in points if point.key == key)
        assert arrived(tracker, opened, key) == expected
    shown = [item.path for item in client.list_artifacts(opened, "images") if item.path.endswith(".png")]
    assert sorted(int(path.split("+step+")[1].split("+")[0]) for path in shown) == [3, 6]

    state = json.loads((directory / STATE).read_text())
    (directory / STATE).write_text(json.dumps(state | {"offset": 0}))
    assert push(directory, tracker) == len(events(directory))
    for key in ("train/a", "train/b"):
        assert len(client.get_metric_history(opened, key)) == 6


@pytest.mark.cluster
def test_a_run_that_mlflow_lost_halfway_through_its_making_is_described_in_the_end(directory, store, monkeypatch):
    """The server goes away between the run and its parameters."""
    from mlflow import MlflowClient

    written(directory)
    tracker = connect(store, "vaegan")
    with monkeypatch.context() as patched:

        def away(*_: object, **__: object) -> None:
            raise Down

        patched.setattr(MlflowClient, "log_batch", away)
        with pytest.raises(Down):
            push(directory, tracker)
    push(directory, tracker)
    client, opened = MlflowClient(store), run_id(directory)
    assert opened is not None
    run = client.get_run(opened)
    assert run.data.params["objective.beta"] == "1.0"
    assert len(run.inputs.dataset_inputs) == 1
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.cluster
def test_sync_sends_what_waits_below_a_home_and_nothing_twice(tmp_path, digits, store, capsys):
    record(tiny(digits, tmp_path), uri=store)
    written(tmp_path / "tiny")
    count = len(events(tmp_path / "tiny"))
    sync(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'tiny'}: {count} events sent to {store}",
    ]
    sync(tmp_path)
    assert capsys.readouterr().out.splitlines() == [f"nothing waits below {tmp_path}"]


@pytest.mark.cluster
def test_a_curve_with_a_figure_that_is_not_finite_still_arrives(directory, store):
    journal = Journal(directory)
    journal.metrics(1, {"a": math.nan, "b": math.inf})
    journal.metrics(2, {"a": 1.0, "b": 1.0})
    tracker = connect(store, "vaegan")
    assert push(directory, tracker) == 2
    opened = run_id(directory)
    assert opened is not None
    assert [len(arrived(tracker, opened, key)) for key in ("a", "b")] == [2, 2]
