"""What every Ray Train worker runs: the loop, told who it is. The only caller of `ray.train.report`."""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Event

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.cluster import in_a_line
from pipeline.errors import Failure
from pipeline.evaluation.measure import Found, Measure
from pipeline.ranks import Ranks
from pipeline.rundir import read_journal
from pipeline.settings import Settings, parse
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
    aside = SpareCpu(settings) if ranks.device.type == "cpu" else None  # a GPU is through before a CPU has begun
    ending = train(settings, directory, ranks, ray.train.report, start, aside)
    return ending.kind, ending.why


class SpareCpu:
    """Evaluates checkpoints on a CPU of the cluster that nobody has."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        single = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        self._task = ray.remote(num_cpus=1, max_retries=1, retry_exceptions=True, runtime_env=single)(_measure)

    def room(self) -> bool:
        return ray.available_resources().get("CPU", 0.0) >= 1

    def measure(self, path: Path, given_up: Event) -> Found:
        cpu = placement_group([{"CPU": 1}])  # a task alone would wait for ever for a CPU that somebody took meanwhile
        try:
            if not cpu.wait(timeout_seconds=5):
                raise Failure("the spare CPU was gone")
            strategy = PlacementGroupSchedulingStrategy(cpu)
            task = self._task.options(scheduling_strategy=strategy).remote(self._settings, path)
            while not ray.wait([task], timeout=1)[0]:
                if given_up.is_set():
                    raise Failure("it took so much longer than training that it was given up")
            return ray.get(task)
        except RayError as error:
            raise Failure(in_a_line(error)) from None
        finally:
            remove_placement_group(cpu)  # and whatever still runs there


def _measure(settings: Settings, path: Path) -> Found:
    _give_way()
    torch.set_num_threads(1)
    return _measure_of(settings).checkpoint(path)


def _give_way() -> None:
    """Let what Ray's own processes do fall on the CPU of this one, not on one that trains: Linux calls it idle then."""
    with suppress(AttributeError, OSError):  # other systems and some sandboxes have no such thing
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@lru_cache(1)
def _measure_of(settings: Settings) -> Measure:
    """Ray's processes wait for more work for a while: one that comes back has its images, and the floors."""
    return Measure(settings, Ranks())


def _start(directory: Path, since: float, seconds: Mapping[str, float]) -> Start:
    """The command's; that of a group which Ray starts again began when the one before was last heard of."""
    heard_of = max((event.time_ms / 1000 for event, _ in read_journal(directory, 0)), default=0.0)
    return Start(since, seconds) if heard_of < since else Start(heard_of)
