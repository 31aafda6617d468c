"""Evaluations as real Ray tasks, killed with the real signal."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.errors import Failure
from pipeline.evaluation.measure import Found, Measure
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from pipeline.training.worker import SpareCpu
from tests.cluster.processes import wait_for
from tests.pipeline.small import run, tiny

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def settings(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny(str(digits), tmp_path_factory.mktemp("home"), {"stop.images": 128})


@pytest.fixture(scope="module")
def checkpoint(settings: Settings) -> Path:
    return run(settings).directory / "images-000000128"


@pytest.fixture
def stuck(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose evaluation waits for a manifest that nobody writes."""
    copied = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    (copied / "manifest.json").unlink()
    os.mkfifo(copied / "manifest.json")
    return copied


@pytest.fixture
def spare(cluster: str, settings: Settings) -> SpareCpu:
    return SpareCpu(settings)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def under_way() -> list[psutil.Process]:
    """The processes of evaluations."""
    every = psutil.process_iter(["cmdline"])
    return [process for process in every if "ray::_measure" in " ".join(process.info["cmdline"] or [])]


def kill_the_next() -> None:
    wait_for(lambda: bool(under_way()), 240)
    for process in under_way():
        process.kill()
        process.wait(10)


def test_an_evaluation_that_is_killed_once_finds_what_is_found_here(spare, checkpoint, stuck, settings, beside):
    assert spare.room()
    found: Future[Found] = beside.submit(spare.measure, stuck, Event())
    wait_for(lambda: bool(under_way()), 240)
    shutil.copy(checkpoint / "manifest.json", stuck / "whole")
    (stuck / "whole").replace(stuck / "manifest.json")
    kill_the_next()
    here = Measure(settings, Ranks()).checkpoint(checkpoint)
    there = found.result(timeout=240)
    assert there.evaluation.figures == pytest.approx(here.evaluation.figures, rel=1e-6)
    assert there.pictures.keys() == here.pictures.keys()
    wait_for(spare.room)


def test_an_evaluation_that_is_killed_again_is_lost(spare, stuck, beside):
    lost = beside.submit(spare.measure, stuck, Event())
    kill_the_next()
    kill_the_next()
    with pytest.raises(Failure):
        lost.result(timeout=240)
    wait_for(spare.room)


def test_an_evaluation_that_is_given_up_leaves_its_cpu(spare, stuck, beside):
    given_up = Event()
    lost = beside.submit(spare.measure, stuck, given_up)
    wait_for(lambda: bool(under_way()), 240)
    given_up.set()
    with pytest.raises(Failure, match="given up"):
        lost.result(timeout=60)
    wait_for(lambda: not under_way() and spare.room())


def test_a_cpu_that_is_taken_is_not_waited_for(spare, checkpoint):
    taken = placement_group([{"CPU": 1}] * 2)
    try:
        ray.get(taken.ready())
        wait_for(lambda: not spare.room())
        began = time.monotonic()
        with pytest.raises(Failure, match="the spare CPU was gone"):
            spare.measure(checkpoint, Event())
        assert time.monotonic() - began < 60
    finally:
        remove_placement_group(taken)
