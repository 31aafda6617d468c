"""A real Ray cluster, real commands in processes of their own, a real data set."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from pipeline.data.prepare import prepare
from pipeline.data.sources import open_source

Vaegan = Callable[..., "subprocess.Popen[str]"]

QUICK = [
    "networks.width=32",
    "networks.latent=4",
    "data.batch=32",
    "evaluation.samples=64",
    "evaluation.images=64",
    "workers.cpus=0.5",
]
"""Settings of a run that takes longer to start than to train."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare(open_source("digits"), "digits", out, size=32, progress=False)
    return out


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a cluster that outlives the commands which join it."""
    os.environ.pop("RAY_ADDRESS", None)
    context = ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def vaegan(cluster: str, digits: Path, tmp_path: Path) -> Iterator[Vaegan]:
    """Starts `vaegan ...` in a process group of its own; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, sets: list[str] | None = None, **environment: str) -> "subprocess.Popen[str]":
        sets = [] if sets is None else [f"home={tmp_path}", f"data.path={digits}", *QUICK, *sets]
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        process = subprocess.Popen(
            [*command, *(part for one in sets for part in ("--set", one))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": cluster, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", **environment},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
