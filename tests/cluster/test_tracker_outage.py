"""A real MLflow server that dies while a run trains, and comes back when it has ended."""

from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.rundir import read_journal
from pipeline.tracking import run_id, waiting
from tests.cluster.conftest import Vaegan
from tests.cluster.processes import finish, free_port, kill, mlflow_server, refusal, wait_for

pytestmark = pytest.mark.cluster

Points = Counter[tuple[str, int, int, float]]


def journalled(run: Path) -> Points:
    events = [event for event, _ in read_journal(run, 0) if event.kind == "metrics"]
    return Counter((key, e.step, e.time_ms, float(str(value))) for e in events for key, value in e.body.items())


def tracked(client: MlflowClient, run: str) -> Points:
    keys = client.get_run(run).data.metrics
    points = [point for key in keys for point in client.get_metric_history(run, key)]
    return Counter((point.key, point.step, point.timestamp, point.value) for point in points)


def test_no_point_is_lost_or_doubled_when_the_tracker_dies(vaegan: Vaegan, tmp_path: Path) -> None:
    port, run = free_port(), tmp_path / "outage"
    uri = f"http://127.0.0.1:{port}"
    sets = ["name=outage", f"tracking.uri={uri}", "stop.images=48000", "log_every=800", "checkpoints.every=8000"]

    server = mlflow_server(tmp_path, port)
    training = vaegan("train", "digits", sets=sets)
    wait_for(lambda: run_id(run) is not None and bool(tracked(MlflowClient(uri), str(run_id(run)))))
    kill(server)
    at_death = journalled(run)
    _, errors = training.communicate(timeout=180)
    assert training.returncode == 0, errors
    assert "vaegan tracking sync" in errors
    assert len(journalled(run)) > len(at_death)
    assert waiting(run) > 0

    server = mlflow_server(tmp_path, port)
    finish(vaegan("tracking", "sync", "--home", str(tmp_path)))
    client = MlflowClient(uri)
    assert tracked(client, str(run_id(run))) == journalled(run)
    assert set(tracked(client, str(run_id(run))).values()) == {1}
    assert client.get_run(str(run_id(run))).info.status == "FINISHED"
    assert "nothing waits" in finish(vaegan("tracking", "sync", "--home", str(tmp_path)))
    kill(server)


def test_a_tracker_that_is_not_there_is_named_before_anything_starts(vaegan: Vaegan, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    line = refusal(vaegan("train", "digits", sets=["name=alone", f"tracking.uri={uri}"]))
    assert uri in line and "tracking.offline=true" in line
    assert not (tmp_path / "alone").exists()
