"""Seconds from `vaegan train digits` to its first step, by cause: on a cluster of its own, and on one that runs.

    .venv/bin/python -m tests.bench.startup [PAIRS]

Disk and tracker are warm: the data is prepared, and an unmeasured run goes first. Starts on the two clusters alternate.
`whole` is measured from outside, from the process's start to the journal's first point, which follows the first step;
what the causes leave of it is the interpreter's start and the writing of that point.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.rundir import read_journal
from tests.cluster.processes import finish, free_port

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


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder, _running_cluster(Path(folder)) as address:
        home = Path(folder)
        finish(_vaegan({}, "data", "prepare", "digits", "--out", str(home / "digits")))
        kinds = {"own cluster": {"RAY_TMPDIR": str(home)}, "running cluster": {"RAY_ADDRESS": address}}
        _start(home, "warm", kinds["running cluster"])
        starts: dict[str, list[Seconds]] = {kind: [] for kind in kinds}
        for pair in range(pairs):
            for kind, environment in kinds.items():
                starts[kind].append(_start(home, f"{kind.split()[0]}-{pair}", environment))
    for kind, measured in starts.items():
        _print(kind, measured)
    helps = [_timed(lambda: finish(_vaegan({}, "--help"))) for _ in range(5)]
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
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    finish(_vaegan(environment, "train", "digits", *sets))
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
def _running_cluster(home: Path) -> Iterator[str]:
    """The address of a cluster in a process group of its own."""
    port = free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    ports = ["--port", str(port), "--dashboard-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", *ports],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RAY_TMPDIR": str(home)},
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait()


def _vaegan(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
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
