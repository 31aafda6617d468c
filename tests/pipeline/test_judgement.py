"""Evaluations beside training: the same figures and the same decisions, whatever becomes of them."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch

from pipeline.errors import Failure
from pipeline.evaluation.measure import Found, Measure
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from pipeline.training import checkpoints, judgement
from pipeline.training.loop import train
from tests.pipeline.small import Run, run, state_of, tiny, weights_of
from tests.vaegan.two_ranks import on_two_ranks

FOUR = {"checkpoints.every": 128, "stop.images": 512}


class Beside:
    """A spare CPU's twin: this process."""

    def __init__(self, settings: Settings, before: Callable[[Path, Event], None] = lambda path, given_up: None) -> None:
        """before: what happens to an evaluation before it begins."""
        self.measure_of = Measure(settings, Ranks())
        self.before = before
        self.measured: list[int] = []

    def room(self) -> bool:
        return True

    def measure(self, path: Path, given_up: Event) -> Found:
        self.before(path, given_up)
        self.measured.append(checkpoints.images_of(path))
        return self.measure_of.checkpoint(path)


def told(done: Run, kind: str) -> list[str]:
    return [str(event.body["text"]) for event in done.events if event.kind == kind]


def progress_of(done: Run) -> list[dict[str, object]]:
    """Of each checkpoint, what was known when it was saved."""
    found = [state_of(done.directory / f"images-{seen:09d}")["progress"] for seen in done.kept]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in found]


@pytest.fixture(scope="module")
def in_the_gap(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return run(tiny(digits, tmp_path_factory.mktemp("home"), FOUR))


def test_figures_beside_training_are_those_of_the_gap(digits, tmp_path, in_the_gap):
    settings = tiny(digits, tmp_path, FOUR)
    aside = Beside(settings)
    done = run(settings, aside)
    assert aside.measured == [128, 256, 384], "the last has the workers' own CPUs"
    assert "evaluations run beside training" in told(done, "note")
    for ours, theirs in zip(done.reports, in_the_gap.reports, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert weights_of(done.directory / "images-000000512") == weights_of(in_the_gap.directory / "images-000000512")
    pictures = [sorted(path.name for path in (one.directory / "pictures").iterdir()) for one in (done, in_the_gap)]
    assert pictures[0] == pictures[1]


def slowly(path: Path, given_up: Event) -> None:
    time.sleep(0.5)


def test_what_is_decided_does_not_depend_on_how_long_an_evaluation_takes(digits, tmp_path, in_the_gap):
    settings = tiny(digits, tmp_path, FOUR)
    slow = run(settings, Beside(settings, slowly))
    assert progress_of(slow) == progress_of(in_the_gap)
    assert [one["best"] for one in progress_of(slow)].count(None) == 1, "known of one checkpoint when the next is saved"
    assert slow.reports == in_the_gap.reports


def lost(path: Path, given_up: Event) -> None:
    raise Failure("its process was killed")


def test_a_lost_evaluation_is_done_in_the_gap_and_warned_of(digits, tmp_path, in_the_gap):
    settings = tiny(digits, tmp_path, FOUR)
    done = run(settings, Beside(settings, lost))
    assert done.ending == in_the_gap.ending
    assert done.reports == in_the_gap.reports
    warning = "images-000000128 could not be evaluated beside training: its process was killed; "
    assert told(done, "warning")[0] == warning + "this and later ones are in the gaps"
    assert sum("beside training" in text for text in told(done, "warning")) == 1


def hanging(path: Path, given_up: Event) -> None:
    assert given_up.wait(60)
    raise Failure("given up")


def test_an_evaluation_that_hangs_is_given_up(digits, tmp_path, in_the_gap, monkeypatch):
    monkeypatch.setattr(judgement, "PATIENCE_S", 0.1)
    settings = tiny(digits, tmp_path, FOUR)
    done = run(settings, Beside(settings, hanging))
    assert done.ending == in_the_gap.ending
    assert done.reports == in_the_gap.reports


class Full(Beside):
    def room(self) -> bool:
        return False


def test_where_no_cpu_is_spare_nothing_is_asked_of_it_and_that_is_said_once(digits, tmp_path, in_the_gap):
    settings = tiny(digits, tmp_path, FOUR)
    aside = Full(settings)
    done = run(settings, aside)
    assert aside.measured == []
    assert told(done, "note").count("evaluations run in the gaps: no CPU is spare") == 1
    assert done.reports == in_the_gap.reports


def test_an_evaluation_that_a_kill_prevented_is_begun_before_training_goes_on(digits, tmp_path, in_the_gap):
    first = run(tiny(digits, tmp_path, {"stop.images": 256}))
    (first.directory / "images-000000256" / "evaluation.json").unlink()
    settings = tiny(digits, tmp_path, FOUR)
    aside = Beside(settings)
    again = run(settings, aside)
    assert aside.measured == [256, 384]
    assert [report["images_seen"] for report in again.reports] == [256, 384, 512]
    assert progress_of(again) == progress_of(in_the_gap)


class Blind(Beside):
    """Finds a figure that is no number."""

    def measure(self, path: Path, given_up: Event) -> Found:
        found = super().measure(path, given_up)
        figures = {**found.evaluation.figures, "eval/fd_pca64/samples": math.nan}
        return found._replace(evaluation=checkpoints.Evaluation(figures=figures, protocols={}))


def test_a_figure_that_is_not_finite_ends_the_run_and_its_checkpoint_does_not_count(digits, tmp_path):
    settings = tiny(digits, tmp_path, FOUR | {"stop.images": 128})
    run(settings)
    settings = tiny(digits, tmp_path, FOUR)
    done = run(settings, Blind(settings))
    last = done.directory / "images-000000128"
    assert done.ending == (
        "diverged",
        f"eval/fd_pca64/samples is not finite in the step that ends at 256 images; the last good checkpoint is {last}",
    )
    assert done.kept == [128]


def test_a_disk_that_refuses_after_an_evaluation_is_written_ends_the_run(digits, tmp_path):
    first = run(tiny(digits, tmp_path, FOUR | {"stop.images": 256}))
    for seen in first.kept:  # nothing can be pruned
        (first.directory / f".images-{seen:09d}.removing" / "in the way").mkdir(parents=True)
    settings = tiny(digits, tmp_path, FOUR | {"checkpoints.num_to_keep": 1})
    done = run(settings, Beside(settings, lost))
    assert done.ending.kind == "failed"
    assert done.ending.why.startswith(f"could not write to {done.directory}: ")
    assert [report["images_seen"] for report in done.reports] == [256]


class BlindLater(Blind):
    """After the first."""

    def measure(self, path: Path, given_up: Event) -> Found:
        later = checkpoints.images_of(path) > 128
        return super().measure(path, given_up) if later else Beside.measure(self, path, given_up)


def diverging(rank: int, settings: Settings, directory: Path) -> str:
    """Every rank has a folder of its own: none but the first can have looked into the first one's."""
    own = directory / f"{rank}"
    own.mkdir()
    return train(settings, own, Ranks(rank, 2), lambda figures: None, aside=BlindLater(settings)).why


def test_only_the_first_rank_looks_for_the_last_good_checkpoint(digits, tmp_path):
    first, second = on_two_ranks(diverging, tmp_path, tiny(digits, tmp_path, FOUR), tmp_path)
    assert first == second
    assert first.endswith(f"; the last good checkpoint is {tmp_path / '0' / 'images-000000128'}")


def on_a_rank(rank: int, settings: Settings, directory: Path) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    ending = train(settings, directory, Ranks(rank, 2), reports.append, aside=Beside(settings, lost))
    assert ending.kind == "finished"
    return reports


def test_ranks_agree_on_figures_that_only_one_has_seen(digits, tmp_path, in_the_gap):
    settings = tiny(digits, tmp_path, FOUR)
    first, second = on_two_ranks(on_a_rank, tmp_path, settings, tmp_path)
    assert first == second
    assert [report["images_seen"] for report in first] == [128, 256, 384, 512]
