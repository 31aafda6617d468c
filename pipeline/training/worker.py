"""What every Ray Train worker runs: the loop, told who it is. The only caller of `ray.train.report`."""

from collections.abc import Mapping
from pathlib import Path

import ray.train
import ray.train.torch
import torch

from pipeline.ranks import Ranks
from pipeline.settings import parse
from pipeline.training.loop import train


def run_worker(config: Mapping[str, object]) -> tuple[str, str]:
    """Train as one rank. Returns kind and why of the end.

    config: `settings`, a tree, and `directory`, the run's folder.
    """
    settings = parse(config["settings"])  # type: ignore[arg-type]
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(settings.workers.cpus)))
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    ending = train(settings, Path(str(config["directory"])), ranks, ray.train.report)
    return ending.kind, ending.why
