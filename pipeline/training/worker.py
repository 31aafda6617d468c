"""What every Ray Train worker runs: the loop, told who it is. The only caller of `ray.train.report`."""

from collections.abc import Mapping
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from pipeline.ranks import Ranks
from pipeline.rundir import read_journal
from pipeline.settings import parse
from pipeline.training.loop import train
from pipeline.training.start import Start


def run_worker(config: Mapping[str, object]) -> tuple[str, str]:
    """Train as one rank. Returns kind and why of the end.

    config: `settings`, a tree; `directory`, the run's folder; `start`, what a Start is made of.
    """
    settings, directory = parse(config["settings"]), Path(str(config["directory"]))  # type: ignore[arg-type]
    start = _start(directory, **config["start"])  # type: ignore[arg-type]
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(settings.workers.cpus)))
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    start.lap("workers")
    ending = train(settings, directory, ranks, ray.train.report, start)
    return ending.kind, ending.why


def _start(directory: Path, since: float, seconds: Mapping[str, float]) -> Start:
    """The command's; that of a group which Ray starts again began when the one before was last heard of."""
    heard_of = max((event.time_ms / 1000 for event, _ in read_journal(directory, 0)), default=0.0)
    return Start(since, seconds) if heard_of < since else Start(heard_of)
