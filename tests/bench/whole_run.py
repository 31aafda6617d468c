"""What everything around the step costs: `vaegan train` beside its own step on images in memory.

    .venv/bin/python -m tests.bench.whole_run [--quick] [--pairs N]

One worker of two threads under Ray Train, 60,000 images of 1x32x32 from Parquet, conv networks of width 16 (0.76 M
parameters), schedule `plain`, batch 128, MLflow on SQLite, a point every 5,000 images, an evaluation and a checkpoint
each epoch. Runs alternate with a process that takes the same steps on images in memory and does nothing else.

`steps`: from point to point, evaluations apart. `everything`: first point to last, with evaluations, pictures and
checkpoints. Start-up is `tests.bench.startup`'s.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.rundir import Event, read_journal
from tests.bench.common import arguments, fresh, machine, rate, ratios, spread, table
from tests.bench.sets import blots
from tests.bench.startup import as_arguments, vaegan
from tests.bench.step import ours
from tests.cluster.processes import finish
from vaegan import config
from vaegan.execution import Execution

IMAGES, HELD_OUT, EPOCHS, BATCH, THREADS = 60_000, 10_000, 2, 128, 2
POINT = 5_000
SHAPE = (1, 32, 32)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(argv)
    images, held_out = (2_560, 256) if given.quick else (IMAGES, HELD_OUT)
    point, pairs = (512, 1) if given.quick else (POINT, min(given.pairs, 3))
    print(machine())
    alone: list[float] = []
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = blots(home, images, SHAPE[0], SHAPE[1], held_out=held_out)
        for pair in range(pairs):
            alone.append(fresh(step_alone, 2.0 if given.quick else 30.0))
            runs.append(whole(home, data, f"run-{pair}", images * EPOCHS, images, point))
    table(
        "Whole runs beside their step (target: steps at least 0.97)",
        ["", "images/s", "of the step alone"],
        [
            ["the step alone, images in memory", spread(alone), "1"],
            *(
                [name, spread(rates := [run[name] for run in runs]), spread(ratios(rates, alone), ".3f")]
                for name in ("steps", "everything")
            ),
        ],
    )
    shares = {name: [run[name] for run in runs] for name in runs[0] if name.startswith("share_")}
    table("Time of the steps", ["", "share"], [[name, spread(share, ".2%")] for name, share in shares.items()])


def step_alone(seconds: float) -> float:
    """Images/s."""
    torch.set_num_threads(THREADS)
    images = torch.randint(256, (IMAGES, *SHAPE), dtype=torch.uint8)
    step = ours(config.Objective(), Execution(precision="bf16"), images)
    for _ in range(5):
        step()
    return rate(step, BATCH, seconds)


def whole(home: Path, data: str, name: str, stop: int, every: int, point: int) -> dict[str, float]:
    """Images/s of a run once it is under way, and the shares of its time."""
    settings = {
        "name": name,
        "home": home,
        "data.path": data,
        "data.batch": BATCH,
        "networks.width": 16,
        "networks.latent": 16,
        "objective.likelihood.variance": "fixed",
        "objective.likelihood.std": 1.0,
        "objective.lambda": 1.0,
        "compute.precision": "bf16",
        "workers.cpus": THREADS,
        "stop.images": stop,
        "checkpoints.every": every,
        "log_every": point,
    }
    finish(vaegan({}, "train", "plain-conv", *as_arguments(settings)), seconds=1200)
    points = [event for event, _ in read_journal(home / name, 0) if "speed/images_per_s" in event.body]
    after = points[1:]  # the first holds the first steps, which are slower
    shares = {key.removeprefix("speed/") for key in points[-1].body if key.startswith("speed/share")}
    return {
        "steps": 1 / statistics.mean(1 / figure(event, "images_per_s") for event in after),
        "everything": 1000 * (after[-1].step - points[0].step) / (after[-1].time_ms - points[0].time_ms),
    } | {share: statistics.mean(figure(event, share) for event in after) for share in sorted(shares)}


def figure(event: Event, name: str) -> float:
    return float(str(event.body[f"speed/{name}"]))


if __name__ == "__main__":
    main()
