"""Runs that are killed, with the real signal, and started again with the same command."""

import hashlib
import json
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.ranks import Ranks
from pipeline.rundir import read_journal
from pipeline.settings import load
from pipeline.training.checkpoints import Checkpoint, listed
from pipeline.training.loop import train
from tests.cluster.conftest import QUICK, Vaegan
from tests.cluster.processes import finish, kill, refusal, wait_for

pytestmark = pytest.mark.cluster

IMAGES = 12_800
RUN = ["checkpoints.every=3200", f"stop.images={IMAGES}", "log_every=1600", "tracking.offline=true"]
TWO, ONE = "workers.count=2", "workers.count=1"


def newest(run: Path) -> Checkpoint:
    return listed(run)[-1]


def weights(checkpoint: Checkpoint) -> dict[str, str]:
    files = checkpoint.path.glob("*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def order(checkpoint: Checkpoint) -> str:
    digest: str = json.loads((checkpoint.path / "state.json").read_text())["progress"]["order_digest"]
    return digest


def steps(run: Path) -> list[tuple[str, int]]:
    """Every point of every curve, but those that tell the time."""
    events = [event for event, _ in read_journal(run, 0) if event.kind == "metrics"]
    return [(key, event.step) for event in events for key in event.body if not key.startswith(("speed/", "startup/"))]


def test_a_killed_run_ends_with_the_bits_of_one_left_alone(vaegan: Vaegan, tmp_path: Path) -> None:
    finish(vaegan("train", "digits", sets=[*RUN, TWO, "name=alone"]))

    killed = vaegan("train", "digits", sets=[*RUN, TWO, "name=killed"])
    wait_for(lambda: bool(listed(tmp_path / "killed")))
    kill(killed)
    assert newest(tmp_path / "killed").images_seen < IMAGES
    finish(vaegan("train", "digits", sets=[*RUN, TWO, "name=killed"]))

    alone, resumed = newest(tmp_path / "alone"), newest(tmp_path / "killed")
    assert alone.images_seen == resumed.images_seen == IMAGES
    assert weights(alone) == weights(resumed)
    assert alone.figures == resumed.figures
    assert order(alone) == order(resumed)
    assert sorted(steps(tmp_path / "alone")) == sorted(steps(tmp_path / "killed"))


@pytest.mark.slow
def test_fewer_workers_go_on_with_the_same_images_in_the_same_order(
    vaegan: Vaegan, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    sets = [f"home={tmp_path}", f"data.path={digits}", *QUICK, *RUN, ONE, "name=one"]
    torch.set_num_threads(1)
    train(load("digits", sets), tmp_path / "one", Ranks(), lambda figures: None)  # never anywhere near two workers
    finish(vaegan("train", "digits", sets=[*RUN, TWO, "name=both", f"stop.images={IMAGES // 2}"]))
    finish(vaegan("train", "digits", sets=[*RUN, ONE, "name=both"]))
    one, both = newest(tmp_path / "one"), newest(tmp_path / "both")
    assert one.images_seen == both.images_seen == IMAGES
    assert order(one) == order(both)
    for name in ("eval/fd_pca64/samples", "eval/fd_pca64/reconstructions", "eval/psnr/reconstructions"):
        assert both.figures[name] == pytest.approx(one.figures[name], rel=0.05)


@pytest.mark.slow
def test_a_lost_worker_costs_nothing_but_time(vaegan: Vaegan, tmp_path: Path) -> None:
    run = vaegan("train", "digits", sets=[*RUN, TWO, "name=lost"])
    wait_for(lambda: bool(listed(tmp_path / "lost")))
    worker = next(p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or []))
    worker.kill()
    finish(run)
    assert newest(tmp_path / "lost").images_seen == IMAGES
    notes = [str(event.body["text"]) for event, _ in read_journal(tmp_path / "lost", 0) if event.kind == "note"]
    assert sum(note.startswith("2 workers, from") for note in notes) == 2


def test_another_run_of_the_same_name_is_refused(vaegan: Vaegan, tmp_path: Path) -> None:
    run = tmp_path / "taken"
    finish(vaegan("train", "digits", sets=[*RUN, ONE, "name=taken", "stop.images=320", "checkpoints.every=320"]))
    before = sorted(run.rglob("*"))
    line = refusal(vaegan("train", "digits", sets=[*RUN, ONE, "name=taken", "objective.beta=7"]))
    assert "objective.beta is 7" in line and "2.5" in line
    assert sorted(run.rglob("*")) == before
