"""What in-loop evaluation costs training: beside it, on a core that is spare, and in its gaps.

    .venv/bin/python -m tests.bench.evaluation [--quick] [--pairs N]

Needs two cores. `vaegan train` with one worker of one thread, conv networks of width 16 (0.76 M parameters), schedule
`plain`, batch 128, 1x32x32 from Parquet; 10,000 held-out images and 10,000 samples an evaluation, one in 20,000 images.
Another neither saves nor evaluates before its end. In the gaps: the worker claims a CPU and a half and uses one, so
that none is spare. The three go on at once and in turn, four seconds each, the others stopped with all their processes:
what else the machine does, all meet alike. Rates are images seen over the time a run had from its first point to its
last, with whatever comes between. The figures found beside training are then found again here, in another process, from
the checkpoints.
"""

import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from pipeline.evaluation.measure import Measure
from pipeline.ranks import Ranks
from pipeline.rundir import read_journal
from pipeline.settings import load
from pipeline.training import checkpoints
from tests.bench.common import arguments, machine, ratios, spread, table
from tests.bench.sets import blots
from tests.bench.startup import as_arguments, vaegan
from tests.cluster.processes import finish

EVERY, CHECKPOINTS, POINT, BATCH = 20_000, 4, 2_500, 128
TURN_S = 4.0
VARIANTS = {"neither": (1.0, False), "beside training": (1.0, True), "in the gaps": (1.5, True)}
"""CPUs that the worker claims, and whether there are evaluations."""

Turns = list[tuple[float, float]]
"""When a run went on: seconds since the epoch, begun and ended."""


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(argv)
    every, point, compared = (640, 128, 200) if given.quick else (EVERY, POINT, 10_000)
    pairs = 1 if given.quick else min(given.pairs, 3)
    print(machine())
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    differences: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = blots(home, every, 1, 32, held_out=compared)
        for pair in range(pairs):
            each: dict[str, dict[str, object]] = {}
            for name, (cpus, evaluated) in VARIANTS.items():
                run = f"{name.replace(' ', '-')}-{pair}"
                each[name] = settings(home, data, run, cpus, every if evaluated else every * CHECKPOINTS) | {
                    "stop.images": every * CHECKPOINTS,
                    "log_every": point,
                    "evaluation.images": compared,
                    "evaluation.samples": compared,
                }
            turns = in_turn({name: vaegan({}, "train", "plain-conv", *as_arguments(each[name])) for name in each})
            for name, sets in each.items():
                rates[name].append(rate(home / str(sets["name"]), turns[name]))
            beside = each["beside training"]
            events = [event for event, _ in read_journal(home / str(beside["name"]), 0)]
            warnings = [str(event.body["text"]) for event in events if event.kind == "warning"]
            assert not any("beside training" in text for text in warnings), warnings
            differences += differences_of(home / str(beside["name"]), beside)
    table(
        "Training with evaluations (target: beside training at least 0.95)",
        ["evaluations", "images/s", "of training without"],
        [[name, spread(found), spread(ratios(found, rates["neither"]), ".3f")] for name, found in rates.items()],
    )
    worst = max(differences)
    table(
        "Figures found beside training and found again (target: within 1e-6)",
        ["checkpoints' figures", "largest relative difference"],
        [[str(len(differences)), f"{worst:.9f}"]],
    )


def settings(home: Path, data: str, name: str, cpus: float, every: int) -> dict[str, object]:
    return {
        "name": name,
        "home": home,
        "data.path": data,
        "data.batch": BATCH,
        "networks.width": 16,
        "networks.latent": 16,
        "workers.cpus": cpus,
        "checkpoints.every": every,
        "checkpoints.num_to_keep": CHECKPOINTS,
        "tracking.offline": "true",
    }


def in_turn(runs: Mapping[str, "subprocess.Popen[str]"]) -> dict[str, Turns]:
    """Let one command at a time go on, until all have ended well; when each did."""
    turns: dict[str, Turns] = {name: [] for name in runs}
    try:
        for run in runs.values():
            _each(run, "suspend")
        while going := {name: run for name, run in runs.items() if run.returncode is None}:
            for name, run in going.items():
                began = time.time()
                _each(run, "resume")
                try:
                    finish(run, TURN_S)
                except subprocess.TimeoutExpired:
                    _each(run, "suspend")
                turns[name].append((began, time.time()))
    finally:
        for run in runs.values():
            if run.returncode is None:
                _each(run, "kill")
    return turns


def _each(run: "subprocess.Popen[str]", what: str) -> None:
    """Suspend, resume or kill a command with all that it has started."""
    command = psutil.Process(run.pid)
    for process in [command, *command.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            getattr(process, what)()


def rate(run: Path, turns: Turns) -> float:
    """Images/s from the first point to the last, of the time in its turns."""
    points = [event for event, _ in read_journal(run, 0) if "speed/images_per_s" in event.body]
    first, last = points[0].time_ms / 1000, points[-1].time_ms / 1000
    had = sum(max(0.0, min(ended, last) - max(began, first)) for began, ended in turns)
    return (points[-1].step - points[0].step) / had


def differences_of(run: Path, sets: dict[str, object]) -> list[float]:
    """Of every figure of every checkpoint, relative to what it is found to be here."""
    torch.set_num_threads(1)  # as there: a neighbour as near as another is one or the other by the last bit
    measure = Measure(load("plain-conv", [f"{key}={value}" for key, value in sets.items()]), Ranks())
    found = []
    for kept in checkpoints.listed(run):
        again = measure.checkpoint(kept.path).evaluation.figures
        assert kept.figures.keys() == again.keys()
        found += [abs(kept.figures[name] - figure) / (abs(figure) or 1.0) for name, figure in again.items()]
    return found


if __name__ == "__main__":
    main()
