"""How cost grows: with batch, image size, workers, shards and finished runs. No term should be worse than linear.

    .venv/bin/python -m tests.bench.growth [PART ...] [--quick] [--pairs N] [--out FOLDER]

Each part prints a table and saves a plot, with a dashed line for "linear" from its first point. The exponent is that
of time against the variable, a line fitted through the logarithms: 1 is linear, 0 is flat, -1 what workers should do.
Training is in float32 with conv networks of width 8, data are random.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

from pipeline.data import manifest as manifests
from pipeline.rundir import Journal, Record, new_record, open_record
from pipeline.settings import dump, identity, load
from pipeline.tracking import MlflowTracker, Point, connect, push
from tests.bench import two_workers
from tests.bench.common import JOINT, alternating, arguments, machine, rate, spread, table, training
from tests.bench.sets import blots, feed, megabytes
from vaegan import config

mpl.use("Agg")
from matplotlib import pyplot as plt

NETWORKS = config.Networks(family="conv", width=8, latent=16)
PLOTS = Path(__file__).with_name("plots")
CONTROL = "a run in a store of few"
Curves = dict[str, dict[int, list[float]]]
"""Name of a curve -> variable -> what was measured."""


class Axes(NamedTuple):
    """What a part measures."""

    variable: str
    measure: str
    seconds: Callable[[int, float], float]
    """The time that grows, from variable and measure."""
    linear: Callable[[int], float]
    """What the measure would be in proportion to, were growth linear."""
    form: str = ",.0f"


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all without one")
    parser.add_argument("--out", type=Path, default=PLOTS, help="folder of the plots")
    given = parser.parse_args(argv)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    print(machine())
    for part in given.parts or PARTS:
        axes, curves = PARTS[part](given)
        show(part, axes, curves)
        plot(given.out / f"{part}.png", axes, curves)


def batch(given: argparse.Namespace) -> tuple[Axes, Curves]:
    sizes = (8, 16, 32) if given.quick else (16, 32, 64, 128, 256, 512, 1024)
    found = _steps({size: ((3, 32, 32), size) for size in sizes}, given)
    return Axes("images a batch", "images/s", lambda x, y: x / y, lambda x: 1), {"32 px": found}


def size(given: argparse.Namespace) -> tuple[Axes, Curves]:
    images = 4 if given.quick else 32
    found = _steps({side**2: ((3, side, side), images) for side in (32, 64, 128)}, given)
    axes = Axes("pixels of an image", "images/s", lambda x, y: 1 / y, lambda x: 1 / x)
    return axes, {f"batch {images}": found}


def workers(given: argparse.Namespace) -> tuple[Axes, Curves]:
    found = two_workers.measured(JOINT, *((1, 2) if given.quick else (given.pairs, 10)))
    axes = Axes("workers of one thread", "images/s", lambda x, y: 1 / y, float)
    return axes, {"global batch 128": {1: found["one process"], 2: found["DDP"]}}


def shards(given: argparse.Namespace) -> tuple[Axes, Curves]:
    """One epoch with all that comes before it; a set of one shard can't be streamed."""
    rows, counts = (4_000, (1, 10, 100)) if given.quick else (20_000, (1, 10, 100, 1_000))
    with tempfile.TemporaryDirectory() as folder:
        paths = {shards: blots(Path(folder), rows, 3, 32, rows // shards) for shards in counts}
        budget = int(0.95 * megabytes(manifests.load(paths[1])))
        whole = {str(n): partial(_epoch_rate, path, rows, 4_096) for n, path in paths.items()}
        streamed = {f"{n} streamed": partial(_epoch_rate, paths[n], rows, budget) for n in counts[1:]}
        found = alternating(whole | streamed, 1 if given.quick else given.pairs)
    curves: Curves = {
        "in memory": {n: found[str(n)] for n in counts},
        "streamed": {n: found[f"{n} streamed"] for n in counts[1:]},
    }
    axes = Axes("shards", "images/s of the first epoch, opening included", lambda x, y: 1 / y, lambda x: 1 / x)
    return axes, curves


def runs(given: argparse.Namespace) -> tuple[Axes, Curves]:
    """Seconds that the tracker takes for one run, its 1,000 points included, when so many are finished already.

    Marks can't take turns, since a store only fills; a run in a store of few, right after each, is the control.
    """
    marks, around = ((2, 6), 2) if given.quick else ((10, 100, 1_000), 10)
    curves: Curves = {name: {} for name in ("a run", *Timed.CALLS, CONTROL)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, few = (f"sqlite:///{folder}/{store}.db" for store in ("full", "few"))
        for uri in (full, few):
            connect(uri, "bench")
        for finished in range(max(marks) + around):
            seconds = _pushed(folder / f"run-{finished:04d}", full)
            for mark in marks:
                if mark <= finished < mark + around:
                    seconds[CONTROL] = _pushed(folder / f"control-{finished:04d}", few)["a run"]
                    for call, value in seconds.items():
                        curves[call].setdefault(mark, []).append(value)
    return Axes("finished runs in MLflow", "seconds a run", lambda x, y: y, float, ".4f"), curves


PARTS: Mapping[str, Callable[[argparse.Namespace], tuple[Axes, Curves]]] = {
    "batch": batch,
    "size": size,
    "workers": workers,
    "shards": shards,
    "runs": runs,
}


def exponent(axes: Axes, curve: Mapping[int, Sequence[float]]) -> float:
    """k of time ~ variable ** k."""
    seconds = [axes.seconds(x, median(y)) for x, y in curve.items()]
    return float(np.polyfit(np.log(list(curve)), np.log(seconds), 1)[0])


def show(part: str, axes: Axes, curves: Curves) -> None:
    rows = [[name, f"{x:,}", spread(y, axes.form)] for name, curve in curves.items() for x, y in curve.items()]
    table(f"Growth: {part}", ["", axes.variable, axes.measure], rows)
    found = [[name, f"{exponent(axes, curve):+.2f}"] for name, curve in curves.items()]
    table(f"Time ~ ({axes.variable}) ** exponent", ["", "exponent"], found)


def plot(path: Path, axes: Axes, curves: Curves) -> None:
    figure, drawn = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in curves.items():
        middle, low, high = (np.array([f(y) for y in curve.values()]) for f in (median, min, max))
        drawn.errorbar(list(curve), middle, yerr=[middle - low, high - middle], marker="o", capsize=3, label=name)
    first = next(iter(curves.values()))
    at = list(first)
    linear = np.array([axes.linear(x) for x in at])
    drawn.plot(at, linear / linear[0] * median(first[at[0]]), "--", color="grey", label="linear")
    drawn.set(xscale="log", yscale="log", xlabel=axes.variable, ylabel=axes.measure)
    drawn.set_xticks(at, [f"{x:,.0f}" for x in at], minor=False)
    drawn.minorticks_off()
    drawn.grid(alpha=0.3)
    drawn.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\n{path}")


def _steps(cases: Mapping[int, tuple[tuple[int, int, int], int]], given: argparse.Namespace) -> dict[int, list[float]]:
    """Images/s of a step for each case, in turn."""
    seconds, pairs = (0.0001, 1) if given.quick else (1.0, given.pairs)
    variants = {
        str(key): partial(rate, training(NETWORKS, JOINT, shape, images).step, images, seconds)
        for key, (shape, images) in cases.items()
    }
    return {int(key): rates for key, rates in alternating(variants, pairs).items()}


def _epoch_rate(path: str, rows: int, budget_mb: int) -> float:
    started, images = time.perf_counter(), 128
    reader = feed(path, images, rows // 10, budget_mb)
    for position in range(0, rows, images):
        reader.at(position)
    return rows / (time.perf_counter() - started)


class Timed(MlflowTracker):
    """MLflow, its calls timed."""

    CALLS = ("open_run", "log_points", "set_status")

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri, experiment)
        self.seconds = dict.fromkeys(self.CALLS, 0.0)

    def open_run(self, record: Record, parent_id: str | None) -> str:
        with self._timed("open_run"):
            return super().open_run(record, parent_id)

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        with self._timed("log_points"):
            super().log_points(run_id, points)

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        with self._timed("set_status"):
            super().set_status(run_id, status, time_ms)

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[call] += time.perf_counter() - started


def _pushed(directory: Path, uri: str) -> dict[str, float]:
    """Seconds of the calls, and of all of it: a tracker of its own, as every run has."""
    tree = {**dump(load("digits")), "name": directory.name}
    data = {"path": "data/blots", "digest": "0" * 64, "source": "blots"}
    open_record(directory, new_record(tree, identity(load("digits"), "0" * 64), data, uri, {}))
    journal = Journal(directory)
    journal.note(0, "status", "RUNNING")
    for step in range(100):
        journal.metrics(step, {f"train/term-{number}": float(step) for number in range(10)})
    journal.note(100, "status", "FINISHED")
    started = time.perf_counter()
    tracker = Timed(uri, "vaegan")
    push(directory, tracker)
    return {"a run": time.perf_counter() - started} | tracker.seconds


if __name__ == "__main__":
    main()
