"""A real search: killed, resumed, tracked, registered."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.rundir import ended
from pipeline.tracking import local_store, run_id
from pipeline.training.checkpoints import listed
from tests.cluster.conftest import QUICK, Vaegan
from tests.cluster.processes import finish, kill, refusal, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SWEEP = """
preset: digits
name: sweep
objective: {beta: {grid: [0.5, 2, 100]}}
stop: {images: 9_600}
log_every: 1_600
checkpoints: {every: 1_600}
workers: {count: 2}
search: {trials: 1, grace: 1_600, reduction: 2}
decision: {samples: 64, images: 64}
"""


def test_a_killed_search_goes_on_and_its_best_is_registered(vaegan: Vaegan, digits: Path, tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP)
    sweep = tmp_path / "sweep"

    killed = vaegan("tune", "run", str(config), sets=[])
    wait_for(lambda: bool(listed(sweep / "trial-00001")), 180)
    kill(killed)
    assert sum(ended(trial) is not None for trial in sweep.glob("trial-*")) < 3
    table = finish(vaegan("tune", "run", str(config), sets=[]), 400)

    trials = sorted(sweep.glob("trial-*"))
    assert [ended(trial) for trial in trials] == ["FINISHED"] * 3
    shown = [line.split() for line in table.splitlines() if line.startswith("trial-")]
    assert len(shown) == 3
    figures = [float(line[3]) for line in shown]
    assert figures == sorted(figures)
    newest = [listed(trial)[-1].images_seen for trial in trials]
    assert min(newest) < max(newest) == 9_600, "ASHA stopped nothing"

    client = MlflowClient(local_store(tmp_path))
    experiment = client.get_experiment_by_name("vaegan").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id(sweep)}'")
    assert {child.info.run_id for child in children} == {run_id(trial) for trial in trials}

    finish(vaegan("register", "sweep", "--name", "digits", "--home", str(tmp_path)))
    version = client.get_model_version_by_alias("digits", "champion")
    assert version.tags["vaegan.run"] == str(sweep / shown[0][0])
    assert float(version.tags["eval/fd_pca64/samples"]) == pytest.approx(figures[0], rel=1e-3)


def test_a_search_that_does_not_fit_is_refused(vaegan: Vaegan, tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(SWEEP)
    line = refusal(vaegan("tune", "run", str(config), sets=["workers.cpus=1", "workers.wait_s=1"]))
    assert "2 CPUs" in line and "workers.count" in line
    assert QUICK and not list(tmp_path.glob("sweep/trial-*"))
