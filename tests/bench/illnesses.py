"""Three illnesses, provoked: when each is named, and what acting does for the second.

    .venv/bin/python -m tests.bench.illnesses [DATA] [--quick]

The preset `fashion-mnist` with networks and batches of half the size, one thread, on a prepared Fashion-MNIST:
beta = 1000; a discriminator with 100 times the learning rate; a NaN in step 500. The second once with `health.mode`
warn and once with act, and beside them a run that is well. Frechet distance on 64 principal components, 2,000 images.
"""

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from pipeline.settings import load
from tests.bench.common import machine, table
from tests.pipeline.illness import named, nan_at_step, warnings
from tests.pipeline.small import Run, run

BATCH, NAN_AT = 32, 500
ILL: dict[str, dict[str, object]] = {
    "well": {},
    "beta = 1000": {"objective.beta": 1000, "health.mode": "stop"},
    "D learns 100 times as fast, warn": {"optimizers.discriminator.lr": 0.1},
    "D learns 100 times as fast, act": {"optimizers.discriminator.lr": 0.1, "health.mode": "act"},
    f"NaN in step {NAN_AT}": {"health.mode": "stop"},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="data/fashion-mnist", help="the prepared set")
    parser.add_argument("--quick", action="store_true", help="shorter: shows that it works, proves nothing")
    given = parser.parse_args(argv)
    steps = 60 if given.quick else 2_500
    torch.set_num_threads(1)
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for number, (illness, changes) in enumerate(ILL.items()):
            with nan_at_step(NAN_AT, BATCH) if illness.startswith("NaN") else nullcontext():
                done = provoked(given.data, Path(home), f"run-{number}", steps, changes)
            rows.append([illness, diagnosis(done), ", ".join(f"{distance:.1f}" for distance in distances(done)) or "-"])
            for images, text in warnings(done):
                print(f"{illness}: step {images // BATCH:,}: {text}", flush=True)
            if done.ending.kind != "finished":
                print(f"{illness}: {done.ending.why}", flush=True)
    every = steps // 5
    table("Illnesses (target: named within 2,000 steps)", ["", "named in step", f"distance every {every} steps"], rows)


def provoked(data: str, home: Path, name: str, steps: int, changes: Mapping[str, object]) -> Run:
    """A run with these settings beside those that all have."""
    settings = {
        "name": name,
        "home": home,
        "data.path": data,
        "data.batch": BATCH,
        "networks.width": 8,
        "log_every": 2_500,
        "average_half_life": 5_000,
        "stop.images": steps * BATCH,
        "checkpoints.every": steps // 5 * BATCH,
        "checkpoints.metric": "eval/fd_pca64/samples",
        "evaluation.extractors": "[pca64]",
        "evaluation.images": 2_000,
        "evaluation.samples": 2_000,
        "health.patience": 15_000,
    }
    return run(load("fashion-mnist", [f"{key}={value}" for key, value in {**settings, **changes}.items()]))


def diagnosis(done: Run) -> str:
    """Signs, each with the step that named it."""
    found = {sign: f"{images // BATCH:,}" for sign, images in named(done).items()}
    if done.ending.kind == "diverged":
        at = re.search(r"not finite in the step that ends at (\d+)", done.ending.why)
        sign, images = ("not_finite", int(at[1])) if at else (done.ending.why.split()[0], done.events[-1].step)
        found[sign] = f"{images // BATCH:,}"
    return "; ".join(f"{sign} {step}" for sign, step in found.items()) or "-"


def distances(done: Run) -> list[float]:
    return [report["eval/fd_pca64/samples"] for report in done.reports]


if __name__ == "__main__":
    main()
