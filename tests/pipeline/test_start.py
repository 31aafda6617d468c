"""A start told by its causes, and a tracker that starts beside it."""

import time
from pathlib import Path

import pytest

from pipeline.errors import Mistake
from pipeline.ranks import Ranks
from pipeline.tracking import waiting
from pipeline.training.loop import train
from pipeline.training.session import tracked
from pipeline.training.start import Start
from pipeline.training.worker import _start
from tests.cluster.processes import free_port
from tests.pipeline.small import events, record, run, tiny


def test_the_causes_add_up_to_the_whole() -> None:
    began = time.time() - 3
    start = Start(began, {"imports": 2.0})
    for cause in ("cluster", "workers"):
        start.lap(cause)
    points = start.points()
    assert list(points) == ["startup/imports", "startup/cluster", "startup/workers"]
    assert sum(points.values()) == pytest.approx(2 + start.since - began)
    assert points["startup/cluster"] >= 3


def test_a_cause_keeps_its_first_stretch_and_all_are_told_once() -> None:
    start = Start(time.time() - 3)
    start.lap("first_step")
    start.lap("first_step")
    assert start.points()["startup/first_step"] >= 3
    assert start.points() == {}


def test_a_run_journals_its_start_once_with_its_first_points(digits: str, tmp_path: Path) -> None:
    settings = tiny(digits, tmp_path)
    directory = tmp_path / settings.name
    directory.mkdir()
    train(settings, directory, Ranks(), lambda figures: None, Start(time.time() - 5, {"imports": 1.0}))
    told = [(key, event.step) for event in events(directory) for key in event.body if key.startswith("startup/")]
    assert told == [(f"startup/{cause}", settings.log_every) for cause in ("imports", "data", "first_step")]


def test_a_group_that_ray_starts_again_counts_from_the_last_sign_of_life(digits: str, tmp_path: Path) -> None:
    settings, began = tiny(digits, tmp_path), time.time()
    assert _start(tmp_path / settings.name, began, {"imports": 1.0}).seconds == {"imports": 1.0}
    alive = run(settings).events[-1].time_ms / 1000
    again = _start(tmp_path / settings.name, began, {"imports": 1.0})
    assert (again.since, again.seconds) == (alive, {})


def test_a_tracker_that_does_not_answer_is_a_mistake_when_tracking_begins(digits: str, tmp_path: Path) -> None:
    settings = tiny(digits, tmp_path, {"tracking.uri": f"http://127.0.0.1:{free_port()}"})
    with tracked(settings, tmp_path) as begin, pytest.raises(Mistake, match=r"tracking\.offline=true"):
        begin()


def test_nothing_is_asked_of_a_tracker_offline(digits: str, tmp_path: Path) -> None:
    settings = tiny(digits, tmp_path, {"tracking.uri": "http://127.0.0.1:1", "tracking.offline": True})
    with tracked(settings, tmp_path) as begin:
        begin()


def test_what_is_journalled_before_tracking_ends_is_sent(digits: str, tmp_path: Path, store: str) -> None:
    settings = tiny(digits, tmp_path, {"tracking.uri": store})
    record(settings, uri=store)
    with tracked(settings, tmp_path) as begin:
        begin()
        run(settings)
    assert waiting(tmp_path / settings.name) == 0
