"""The data path alone: against the fastest training steps, to its first batch, and in memory when it streams.

    .venv/bin/python -m tests.bench.data_path [--quick] [--pairs N]

1. Images/s of `Feed.at` alone and of a training step alone, in turn in one process, for images of the same shape and
   batches of the same size. Target: 10 times, in memory and streamed with a budget of a quarter of the set.
2. Seconds from the opening of a prepared set to its first batch, each in a process that has only imported, warm disk.
   Target: 1 s for 60,000 images.
3. Peak resident memory of a process that streams one epoch of a set 4 times `data.budget_mb`, less the peak of one
   that reads a Parquet file of one row. Target: no more than the budget.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.data import manifest as manifests
from pipeline.data.batches import SCRATCH, Feed
from tests.bench.common import (
    BERNOULLI,
    DIGITS,
    JOINT,
    SMALL,
    Shape,
    alternating,
    arguments,
    fresh,
    machine,
    rate,
    ratios,
    spread,
    table,
    training,
)
from tests.bench.sets import blots, feed, megabytes
from vaegan import config

WHOLE_MB = 4096
"""A budget that every set here fits."""


class Sizes(NamedTuple):
    images: int
    streamed: int
    """Images of the set whose memory is measured."""
    shard_rows: int
    seconds: float
    """Of one measurement of a rate."""


FULL, QUICK = Sizes(60_000, 120_000, 1024, 2.0), Sizes(4_500, 16_000, 128, 0.05)


class Step(NamedTuple):
    """A training step to compare with."""

    name: str
    networks: config.Networks
    objective: config.Objective
    shape: Shape
    batch: int


STEPS = (
    Step("`digits` preset", DIGITS, BERNOULLI, (1, 32, 32), 64),
    Step("conv, width 16", SMALL, JOINT, (3, 32, 32), 128),
)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(argv)
    sizes, pairs = (QUICK, 1) if given.quick else (FULL, given.pairs)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        against_steps(folder, sizes, pairs)
        first_batches(folder, sizes, pairs)
        memory(folder, sizes)


def against_steps(folder: Path, sizes: Sizes, pairs: int) -> None:
    rows = []
    for case in STEPS:
        path = blots(folder, sizes.images, case.shape[0], case.shape[1], sizes.shard_rows)
        found = alternating(
            {
                "step, fp32": _step_rate(case, None, sizes.seconds),
                "step, bf16": _step_rate(case, torch.bfloat16, sizes.seconds),
                "in memory": _feed_rate(feed(path, case.batch, 16_384, WHOLE_MB), case.batch, sizes.seconds),
                "streamed": _feed_rate(_streamed(path, case.batch, sizes), case.batch, sizes.seconds),
            },
            pairs,
        )
        steps = [max(pair) for pair in zip(found["step, fp32"], found["step, bf16"], strict=True)]
        for name, rates in found.items():
            ratio = "1" if name.startswith("step") else spread(ratios(rates, steps), ".1f")
            rows.append([f"{case.name}, batch {case.batch}", name, spread(rates), ratio])
    table("Data path against step", ["networks", "", "images/s", "times the faster step (target 10)"], rows)


def first_batches(folder: Path, sizes: Sizes, pairs: int) -> None:
    rows = []
    for channels, size in ((1, 28), (3, 32)):
        path = blots(folder, sizes.images, channels, size)
        seconds = [fresh(seconds_to_first_batch, path) for _ in range(pairs)]
        megabyte = megabytes(manifests.load(path))
        rows.append([f"{sizes.images:,} x {channels}x{size}x{size}", f"{megabyte:.0f}", spread(seconds, ".2f")])
    table("Time to the first batch, the set held in memory", ["images", "MB of pixels", "s (target 1)"], rows)


def memory(folder: Path, sizes: Sizes) -> None:
    path = blots(folder, sizes.streamed, 3, 32, sizes.shard_rows)
    nothing, epoch = fresh(peak_mb, path, 0, sizes), fresh(peak_mb, path, sizes.streamed, sizes)
    all_mb, budget = megabytes(manifests.load(path)), _quarter_mb(path)
    used = epoch - nothing
    table(
        "Memory while one epoch is streamed",
        ["MB of pixels", "budget, MB", "peak, one row", "peak, streams", "difference", "share of the budget"],
        [[f"{all_mb:.0f}", str(budget), f"{nothing:.0f}", f"{epoch:.0f}", f"{used:.0f}", f"{used / budget:.2f}"]],
    )


def seconds_to_first_batch(path: str) -> float:
    started = time.perf_counter()
    feed(path, 128, 16_384, WHOLE_MB).at(0)
    return time.perf_counter() - started


def peak_mb(path: str, images: int, sizes: Sizes) -> float:
    """Of this process, after it has streamed so many images."""
    torch.set_num_threads(1)
    pq.read_table(pa.BufferReader(_tiny_parquet()))  # libraries load for any set
    if images:
        reader = _streamed(path, 128, sizes)
        for position in range(0, images, 128):
            reader.at(position)
    # not getrusage: its ru_maxrss starts at the memory of the parent that this process was forked from
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _tiny_parquet() -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"one": [1]}), sink, compression="zstd")
    return sink.getvalue()


def _streamed(path: str, batch: int, sizes: Sizes) -> Feed:
    """With a quarter of the set for a budget, and the widest window that leaves room for its shards."""
    manifest, budget = manifests.load(path), _quarter_mb(path)
    rows = int(budget / megabytes(manifest) * manifest.rows("train"))
    return feed(path, batch, int((rows - SCRATCH * sizes.shard_rows) / 2 - 2 * sizes.shard_rows), budget)


def _quarter_mb(path: str) -> int:
    return int(megabytes(manifests.load(path)) / 4)


def _step_rate(case: Step, precision: torch.dtype | None, seconds: float) -> Callable[[], float]:
    step = training(case.networks, case.objective, case.shape, case.batch, precision=precision).step
    return lambda: rate(step, case.batch, seconds)


def _feed_rate(reader: Feed, batch: int, seconds: float) -> Callable[[], float]:
    positions = count(0, batch)
    return lambda: rate(lambda: reader.at(next(positions)), batch, seconds)


if __name__ == "__main__":
    main()
