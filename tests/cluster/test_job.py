"""`ray job submit` to a cluster that `ray start --head` started, with token authentication."""

import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.training.checkpoints import listed
from tests.cluster.conftest import QUICK
from tests.cluster.processes import free_port, kill, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))


def test_a_submitted_job_trains_on_a_cluster_that_asks_for_a_token(digits: Path, tmp_path: Path) -> None:
    dashboard = free_port()
    address = f"http://127.0.0.1:{dashboard}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray-"),  # a killed head leaves its address behind for others to find
    }
    stranger = {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def ray(*arguments: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([RAY, *arguments], capture_output=True, text=True, env=env, timeout=240)

    def submit(name: str, *command: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        return ray("job", "submit", "--address", address, "--submission-id", name, "--", *command, env=env)

    ports = (
        "--port",
        str(free_port()),
        "--dashboard-port",
        str(dashboard),
        "--ray-client-server-port",
        str(free_port()),
    )
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus", "2", *ports],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    attempts = itertools.count()
    try:
        wait_for(lambda: submit(f"ready-{next(attempts)}", "true", env=environment).returncode == 0)
        assert submit("stranger", "true", env=stranger).returncode != 0

        sets = [f"home={tmp_path}", f"data.path={digits}", *QUICK, "name=job", "stop.images=3200", "workers.count=2"]
        command = [sys.executable, "-m", "pipeline.cli", "train", "digits"]
        command += [part for one in sets for part in ("--set", one)]
        done = submit("job", *command, env=environment)
        assert done.returncode == 0, done.stdout
        assert "succeeded" in done.stdout
        assert listed(tmp_path / "job")[-1].images_seen == 3200
    finally:
        kill(head)
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
