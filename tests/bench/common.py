"""What the benchmarks share: the machine in a line, runs in turn, tables of medians, and a training step to time."""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn

from vaegan import build, config
from vaegan.model import Learner
from vaegan.objective import players, turns, weights_at
from vaegan.step import Batch, Noise, Player, Watch, step, unwatched

P = ParamSpec("P")
T = TypeVar("T")
Shape = tuple[int, int, int]

DIGITS = config.Networks(family="mlp", width=384, latent=10, norm="none")
SMALL = config.Networks(family="conv", width=16, latent=16)
"""0.77 M parameters at 3x32x32."""
PLAIN = config.Objective(schedule="plain")
JOINT = config.Objective(schedule="joint")
BERNOULLI = config.Objective(schedule="joint", likelihood=config.Likelihood(kind="bernoulli"))


def arguments(script: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: shows that it works, proves nothing")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of each variant")
    return parser


def machine() -> str:
    """CPU, cores, memory and versions, and how busy they were already."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pyarrow", "ray", "mlflow") if find_spec(name))
    return (
        f"{_processor()}, {os.cpu_count()} cores, {ram:.0f} GiB; Python {platform.python_version()}, {versions}; "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


def alternating(variants: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """What each variant returns, `pairs` times in turn, after a round that does not count."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for count in range(pairs + 1):
        for name, run in variants.items():
            value = run()
            if count:
                measured[name].append(value)
    return measured


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Pair by pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}}..{high:{form}})"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print it as Markdown."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [header, ["-" * width for width in widths], *rows]
    print(f"\n{title}\n")
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |", flush=True)


def rate(call: Callable[[], object], images: int, seconds: float) -> float:
    """Images/s of calls that take so many each, repeated for so long."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        call()
        calls += 1
    return calls * images / elapsed


def fresh(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns in a process that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *args, **kwargs).result()


class Training(NamedTuple):
    """A step that can be repeated, on data that are there."""

    players: dict[str, Player]
    step: Callable[[], object]


def training(
    networks: config.Networks,
    objective: config.Objective,
    shape: Shape,
    batch: int,
    *,
    precision: torch.dtype | None = None,
    wrap: Callable[[Learner], nn.Module] = lambda learner: learner,
    watch: Watch = unwatched,
) -> Training:
    """The same weights, images and noise every time it is called."""
    torch.manual_seed(0)
    model = build(networks, objective.likelihood, shape)
    everyone = players(model, objective, config.Optimizers(), wrap, precision)
    images = Batch(torch.rand(batch, *shape))
    noise = Noise(*torch.randn(2, batch, networks.latent))
    moves, weights = turns(objective), weights_at(objective, 0)
    return Training(everyone, lambda: step(moves, everyone, images, noise, weights, watch=watch))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
