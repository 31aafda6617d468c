"""Where the time of a preset's step goes: a table, and a trace to look into. One process, without Ray or MLflow."""

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, record_function

from pipeline.data import manifest as manifests
from pipeline.data.batches import Ids
from pipeline.data.loader import Stream, feed_of
from pipeline.errors import Mistake
from pipeline.ranks import Ranks
from pipeline.settings import Settings, load
from pipeline.speed.ceiling import Ceilings, measure
from pipeline.speed.figures import Stretch, speed
from pipeline.speed.flops import Cost, step_cost
from pipeline.speed.meter import Meter
from pipeline.speed.phases import PHASES
from pipeline.table import print_table
from pipeline.training.choice import precision_for
from pipeline.training.stepper import Stepper
from vaegan.execution import Execution, candidates, prepare
from vaegan.networks.ports import Shape
from vaegan.objective import turns
from vaegan.step import unwatched

WARM_UP, TRACED, OPERATORS = 3, 2, 10
"""Steps before the measured ones, steps in the trace, operators in the table."""
FEWEST, ENOUGH_S = 3, 5.0
"""Steps that are measured where nobody says how many: so many, or as many as take so long."""
RANDOM_SHAPE, RANDOM_IMAGES = (3, 32, 32), 4096
"""Stands in for a data set that is not there."""
BAR = 30
"""Characters of the whole time."""


def profile(source: str, overrides: Sequence[str], steps: int | None, out: Path) -> None:
    """Measure steps of a preset or YAML file, print what they cost, and trace a few more into `out`.

    steps: how many; None measures for 5 s. Raises Mistake.
    """
    settings = load(source, overrides)
    if steps is not None and steps < 1:
        raise Mistake(f"--steps is {steps}; expected a number >= 1")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise Mistake(f"--out is {str(out)!r}; expected a file in a folder that can be written to")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare(device)
    ceilings = measure(device)
    way, *_ = candidates(device, precision_for(settings.compute.precision, ceilings), ranks=1)  # with phases to tell
    game = _game(settings, device, way)
    cost = _cost(game)
    _print_subject(game)
    figures = _measured(game, steps, cost, ceilings)
    _print_speed(figures, ceilings, game)
    _print_split(figures)
    _print_operators(_traced(game, out), device)
    print(f"\n{out}: trace of {TRACED} steps; open it at https://ui.perfetto.dev")


class Game(NamedTuple):
    """A step that can be taken again and again, and what it is fed with."""

    settings: Settings
    device: torch.device
    execution: Execution
    stepper: Stepper
    shape: Shape
    source: str


class RandomImages:
    """Random images, for a data set that is not there."""

    def __init__(self, batch: int) -> None:
        self._images = torch.randint(256, (RANDOM_IMAGES, *RANDOM_SHAPE), dtype=torch.uint8)
        self._batch = batch

    def move_to(self, device: torch.device, most_bytes: int) -> None:
        """See `pipeline.data.batches.Images`."""
        self._images = self._images.to(device)

    def at(self, position: int) -> tuple[Ids, Tensor]:
        """See `pipeline.data.batches.Feed`."""
        ids = np.arange(position, position + self._batch) % RANDOM_IMAGES
        return ids, self._images[torch.from_numpy(ids).to(self._images.device)]


def _game(settings: Settings, device: torch.device, execution: Execution) -> Game:
    """Raises Mistake where the networks can't take the images."""
    feed, shape, source = _feed(settings)
    try:
        stepper = Stepper(settings, feed, shape, execution, Ranks(device=device))
    except ValueError as error:
        raise Mistake(str(error)) from None
    return Game(settings, device, execution, stepper, shape, source)


def _feed(settings: Settings) -> tuple[Stream, Shape, str]:
    """The data set of the settings; random images where it is not on this disk."""
    data = settings.data
    if "://" not in data.path and not Path(data.path).exists():
        return RandomImages(data.batch), RANDOM_SHAPE, f"random: there is no {data.path}"
    manifest = manifests.load(data.path)
    return feed_of(settings, manifest, Ranks()), manifest.shape, data.path


def _cost(game: Game) -> Cost:
    """Of an image. Raises Mistake where networks and objective do not fit each other."""
    try:
        return step_cost(partial(game.stepper.step, unwatched)).over(game.settings.data.batch)
    except ValueError as error:
        raise Mistake(str(error)) from None


def _measured(game: Game, steps: int | None, cost: Cost, ceilings: Ceilings) -> dict[str, float]:
    """The figures of so many steps, after a few that warm up."""
    meter = Meter(game.device, game.stepper.communication)
    warming_s = _stretch(game, WARM_UP, meter).seconds
    steps = steps or max(FEWEST, round(ENOUGH_S * WARM_UP / warming_s))
    if game.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(game.device)  # the copy that was measured took more
    return speed(_stretch(game, steps, meter), cost, ceilings, game.execution.dtype)


def _stretch(game: Game, steps: int, meter: Meter) -> Stretch:
    """So many steps, until the device is done with them."""
    meter.begin()
    for _ in range(steps):
        game.stepper.step(meter.phases)
    if game.device.type == "cuda":
        torch.cuda.synchronize(game.device)
    return meter.read(steps, steps * game.settings.data.batch)


def _traced(game: Game, out: Path) -> list[FunctionEventAvg]:
    """The operators of a few steps, and their trace in `out`."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if game.device.type == "cuda" else [])]
    plan = torch.profiler.schedule(wait=0, warmup=1, active=TRACED, repeat=1)
    with torch.profiler.profile(activities=kinds, schedule=plan, acc_events=True) as profiler:
        for _ in range(1 + TRACED):
            game.stepper.step(record_function)
            profiler.step()
    profiler.export_chrome_trace(str(out))
    averages = profiler.key_averages()
    return [event for event in averages if event.device_type == DeviceType.CPU and not event.is_user_annotation]


def _print_subject(game: Game) -> None:
    settings, device = game.settings, game.device
    owners = [game.stepper.state.players[name].network for name in ("autoencoder", "discriminator")]
    weights = sum(weight.numel() for owner in owners for weight in owner.parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    shape = " x ".join(map(str, game.shape))
    print(f"preset     {settings.name}: {settings.networks.family}, {weights / 1e6:.2f} M weights")
    print(f"schedule   {' -> '.join(turn.name for turn in turns(settings.objective))}")
    print(f"device     {name}, torch {torch.__version__}")
    print(f"precision  {_name(game.execution.dtype)}")
    print(f"batch      {settings.data.batch} images of {shape}, {game.source}")


def _print_speed(figures: Mapping[str, float], ceilings: Ceilings, game: Game) -> None:
    figure = {name.removeprefix("speed/"): value for name, value in figures.items()}
    flop, copied = ceilings.flop_per_s(game.execution.dtype), ceilings.copy_bytes_per_s
    product = f"{figure['share_of_matmul_ceiling']:.1%} of a {_name(game.execution.dtype)} matmul's {flop / 1e9:,.0f}"
    copy = f"{figure['share_of_copy_ceiling']:.1%} of a copy's {copied / 1e9:,.1f}, were nothing fused or cached"
    peak, whose = _peak_bytes(game.device)
    rows = [
        ("speed", f"{figure['images_per_s']:,.0f}", "images/s", f"{1e3 * figure['step_s']:.2f} ms a step"),
        ("work", f"{figure['flop_per_image'] / 1e9:.4f}", "GFLOP/image", "forward and backward"),
        ("arithmetic", f"{figure['flop_per_s'] / 1e9:,.1f}", "GFLOP/s", product),
        ("traffic", f"{figure['bytes_per_s'] / 1e9:,.1f}", "GB/s", copy),
        ("memory", f"{peak / 1e6:,.0f}", "MB", f"at the peak, {whose}"),
    ]
    if "watts" in figure:
        rows.append(("energy", f"{figure['joules_per_image']:.4f}", "J/image", f"{figure['watts']:.0f} W"))
    print()
    for name, value, unit, note in rows:
        print(f"{name:10} {value:>11} {unit:11}  {note}")


def _print_split(figures: Mapping[str, float]) -> None:
    shares = {name: figures[f"speed/share_{name}"] for name in (*PHASES, "other")}
    rows = [
        [name, f"{share:.1%}", f"{1e3 * share * figures['speed/step_s']:.2f}", f"{'#' * round(BAR * share):{BAR}}"]
        for name, share in shares.items()
        if name not in {"communication", "wait"}  # there is one rank
    ]
    print()
    print_table(["time", "share", "ms a step", " " * BAR], rows)


def _print_operators(operators: list[FunctionEventAvg], device: torch.device) -> None:
    """The costliest, by the time in themselves."""
    times = {
        str(event.key): (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)
        / 1e3
        / TRACED
        for event in operators
    }
    calls = {str(event.key): event.count / TRACED for event in operators}
    whole = sum(times.values())
    costliest = sorted(times, key=lambda key: -times[key])[:OPERATORS]
    rows = [[key, f"{times[key] / whole:.1%}", f"{times[key]:.2f}", f"{calls[key]:.0f}"] for key in costliest]
    print()
    print_table(["operator", "share", "ms a step", "calls a step"], rows)


def _name(precision: torch.dtype | None) -> str:
    return "fp32" if precision is None else "bf16"


def _peak_bytes(device: torch.device) -> tuple[int, str]:
    """The most memory that was held at once, and what is counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "of tensors on the device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of the whole process"
