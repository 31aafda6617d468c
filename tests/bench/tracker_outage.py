"""What a dead tracker costs training: images/s of runs whose MLflow server lives, and of runs whose server is killed.

    .venv/bin/python -m tests.bench.tracker_outage [PAIRS]

Pairs alternate on one machine. The rate is that of the stretch after the server's death (after a third of the run where
it lives): images between the first and the last point there, over the time between them, evaluations included.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.rundir import read_journal
from pipeline.tracking import run_id
from tests.bench.startup import as_arguments
from tests.cluster.processes import finish, free_port, kill, mlflow_server, wait_for

IMAGES, POINT = 60_000, 1_000


def main(pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = home / "digits"
        finish(_vaegan("data", "prepare", "digits", "--out", str(data)))
        print("pair   tracker up   tracker killed   ratio")
        ratios = []
        for pair in range(pairs):
            up, down = (_rate(home, data, f"{name}-{pair}", dies=name == "down") for name in ("up", "down"))
            ratios.append(down / up)
            print(f"{pair:4}   {up:8.0f}/s   {down:12.0f}/s   {ratios[-1]:.3f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f} (1 = a dead tracker costs nothing)")


def _rate(home: Path, data: Path, name: str, *, dies: bool) -> float:
    port, run = free_port(), home / name
    server = mlflow_server(home, port)
    settings = {
        "name": name,
        "home": home,
        "data.path": data,
        "tracking.uri": f"http://127.0.0.1:{port}",
        "stop.images": IMAGES,
        "log_every": POINT,
        "checkpoints.every": IMAGES // 4,
    }
    training = _vaegan("train", "digits", *as_arguments(settings))
    wait_for(lambda: run_id(run) is not None and _seen(run) >= IMAGES // 3)
    if dies:
        kill(server)
    finish(training)
    if not dies:
        kill(server)
    points = [event for event, _ in read_journal(run, 0) if event.kind == "metrics" and event.step >= IMAGES // 3]
    return 1000 * (points[-1].step - points[0].step) / (points[-1].time_ms - points[0].time_ms)


def _seen(run: Path) -> int:
    return max((event.step for event, _ in read_journal(run, 0)), default=0)


def _vaegan(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
