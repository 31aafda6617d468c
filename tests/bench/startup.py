"""Seconds from `vaegan train digits` to its first step, by cause: on a cluster of its own, and on one that runs.

    .venv/bin/python -m tests.bench.startup [STARTS]

Disk and tracker are warm: the data is prepared, and an unmeasured run goes first. No other Ray may run on the machine:
it would be joined. For that reason the two kinds don't alternate either.
`whole` is measured from outside, from the process's start to the journal's first point, which follows the first step;
what the causes leave of it is the interpreter's start and the writing of that point.
"""

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.rundir import read_journal
from tests.cluster.processes import finish, free_port, kill, wait_for

BATCH = 128
CAUSES = {
    "imports": "settings, torch, Ray; preflight",
    "cluster": "Ray started or joined",
    "tracker": "MLflow, as far as Ray did not take longer",
    "workers": "Ray Train's controller, group and process group",
    "data": "data read, PCA fitted",
    "first_step": "networks built, first step",
    "whole": "command to first step",
}

Seconds = dict[str, float]


def main(starts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        finish(vaegan({}, "data", "prepare", "digits", "--out", str(home / "digits")))
        _start(home, "warm", {})
        _print("own cluster", [_start(home, f"own-{start}", {}) for start in range(starts)])
        with _running_cluster() as environment:
            _start(home, "first", environment)
            _print("running cluster", [_start(home, f"joined-{start}", environment) for start in range(starts)])
    helps = [_timed(lambda: finish(vaegan({}, "--help"))) for _ in range(5)]
    print(f"\nvaegan --help: {_spread(helps)} s")


def _start(home: Path, name: str, environment: dict[str, str]) -> Seconds:
    """Train on two batches."""
    settings = {
        "name": name,
        "home": home,
        "data.path": home / "digits",
        "data.batch": BATCH,
        "log_every": BATCH,
        "checkpoints.every": 2 * BATCH,
        "stop.images": 2 * BATCH,
    }
    began = time.time()
    finish(vaegan(environment, "train", "digits", *as_arguments(settings)))
    first = next(event for event, _ in read_journal(home / name, 0) if event.kind == "metrics")
    seconds = {cause: float(str(first.body.get(f"startup/{cause}", "nan"))) for cause in CAUSES}
    return seconds | {"whole": first.time_ms / 1000 - began}


def _print(kind: str, starts: list[Seconds]) -> None:
    print(f"\n{kind}, {len(starts)} starts        median    min    max")
    for cause, about in CAUSES.items():
        print(f"{cause:10} {_spread([seconds[cause] for seconds in starts])}  {about}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} {min(values):6.2f} {max(values):6.2f}"


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def _running_cluster() -> Iterator[dict[str, str]]:
    """The environment of commands that join a cluster, while it runs."""
    port, ray = free_port(), str(Path(sys.executable).with_name("ray"))
    ports = ["--port", str(port), "--dashboard-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # a head may ask for one unbidden
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", *ports],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | token | {"RAY_TMPDIR": folder},
            start_new_session=True,
        )
        try:
            wait_for(lambda: (Path(folder) / "ray" / "ray_current_cluster").exists())
            yield token | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            kill(head)


def as_arguments(settings: Mapping[str, object]) -> list[str]:
    """Of the command, for settings by their dotted paths."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def vaegan(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """On the one cluster that `environment` names, whatever this shell does."""
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own | environment,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
