"""How a run computes its steps: chosen once, by measurement, then kept with the run and reused whenever it resumes.

Ways to compute differ in rounding, so that a run which changed its way would not be the run it was. What was measured
for one run of a home or a search serves its siblings, who have the same networks on the same device.
"""

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Literal

import torch

from pipeline.ranks import Ranks
from pipeline.rundir import write_atomically
from pipeline.settings import Settings, dump, flatten
from pipeline.speed.ceiling import Ceilings, does_bf16_well
from pipeline.speed.marks import mark, seconds
from vaegan import build
from vaegan.execution import Execution, Precision, assemble, candidates
from vaegan.networks.ports import Shape
from vaegan.objective import weights_at
from vaegan.step import Batch, Noise

FILE, MEASURED = "execution.json", ".execution"
TIMED = 10
"""Steps of a candidate that are timed, after as many that are not."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
EVERY_WAY = [
    Execution(precision=precision, channels_last=channels_last, compiled=compiled, captured=captured)
    for precision in PRECISIONS
    for channels_last, compiled, captured in product((False, True), repeat=3)
]

SHAPING = (
    "objective.schedule",
    "objective.adversarial",
    "objective.reconstruction",
    "objective.feature_layer",
    "objective.judge_reconstructions",
    "objective.likelihood.kind",
    "objective.likelihood.variance",
    "optimizers.autoencoder.kind",
    "optimizers.discriminator.kind",
    "optimizers.generator.kind",
)
"""Settings of objective and optimisers that change which operations a step is made of."""

Tell = Callable[[str], None]


def chosen(
    settings: Settings, directory: Path, shape: Shape, ranks: Ranks, ceilings: Ceilings | None, tell: Tell
) -> Execution:
    """The way that rank 0 finds stored with the run, or chooses now; the same on every rank.

    Where a run resumes on what can't do all of the stored way, it keeps what it can: the precision always.
    ceilings: of rank 0's device, which it alone needs. tell: takes what was chosen and why, in one line.
    """
    number = 0
    if ceilings is not None:
        stored = _read(directory / FILE)
        if not stored:
            stored = asdict(_choice(settings, directory, shape, ranks, ceilings, tell))
            write_atomically(directory / FILE, json.dumps(stored) + "\n")
        number = EVERY_WAY.index(_possible(Execution(**stored), ranks))  # type: ignore[arg-type]
    return EVERY_WAY[ranks.first_says(number)]


def _possible(way: Execution, ranks: Ranks) -> Execution:
    on_gpu = ranks.device.type == "cuda"
    return replace(way, compiled=way.compiled and on_gpu, captured=way.captured and on_gpu and ranks.world == 1)


def precision_for(asked: Literal["auto", "fp32", "bf16"], ceilings: Ceilings) -> Precision:
    """What `compute.precision` comes to on a device."""
    if asked != "auto":
        return asked
    return "bf16" if does_bf16_well(ceilings) else "fp32"


def _choice(
    settings: Settings, directory: Path, shape: Shape, ranks: Ranks, ceilings: Ceilings, tell: Tell
) -> Execution:
    ways = candidates(ranks.device, precision_for(settings.compute.precision, ceilings), ranks.world)
    if len(ways) == 1:
        return ways[0]
    cache = directory.parent / f"{MEASURED}-{_key(settings, shape, ranks, ways)}.json"
    times: list[float] = _read(cache).get("seconds", [])  # type: ignore[assignment]
    if not times:
        times = [_step_s(way, settings, shape, ranks, tell) for way in ways]
        if inf not in times:  # what did not work may have had its reasons in the moment
            write_atomically(cache, json.dumps({"seconds": times}) + "\n")
    best = ways[times.index(min(times))]
    told = ", ".join(f"{_name(way)} {1000 * took:.1f} ms" for way, took in zip(ways, times, strict=True))
    tell(f"steps are {_name(best)}: measured {told}")
    return best


def _step_s(way: Execution, settings: Settings, shape: Shape, ranks: Ranks, tell: Tell) -> float:
    """Seconds of a step on a scratch model, without DDP; infinite where a way does not work here."""
    try:
        return _timed(way, settings, shape, ranks)
    except Exception as error:  # a compiler that is missing must not end a run that can do without
        tell(f"steps can't be {_name(way)} here: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return inf
    finally:  # compiled modules hold each other: without this their memory would be missing from the run's
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()


def _timed(way: Execution, settings: Settings, shape: Shape, ranks: Ranks) -> float:
    objective, compute = settings.objective, settings.compute
    size = settings.data.batch // ranks.world
    model = build(settings.networks, objective.likelihood, shape).to(ranks.device)
    engine = assemble(model, objective, settings.optimizers, way, parts=compute.accumulate, recompute=compute.recompute)
    batch = Batch(torch.rand(size, *shape, device=ranks.device))
    posterior_BZ, prior_BZ = torch.randn(2, size, settings.networks.latent, device=ranks.device)
    noise = Noise(posterior_BZ, prior_BZ, torch.randn_like(batch.images) if objective.penalty else None)
    start = mark(ranks.device)
    for number in range(2 * TIMED):
        if number == TIMED:
            start = mark(ranks.device)
        engine(batch, noise, weights_at(objective, 0))
    return seconds(start, mark(ranks.device)) / TIMED


def _key(settings: Settings, shape: Shape, ranks: Ranks, ways: Sequence[Execution]) -> str:
    """What the times of these ways depend on: not beta, lambda or the rates, which a search varies."""
    tree = flatten(dump(settings))
    kept = {path: value for path, value in tree.items() if path.startswith(("networks.", "compute."))}
    kept |= {path: tree[path] for path in SHAPING} | {
        "gate": settings.objective.gate is not None,
        "penalty": settings.objective.penalty > 0,
    }
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
    facts = [kept, settings.data.batch, ranks.world, shape, device, torch.__version__, list(map(asdict, ways))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _name(way: Execution) -> str:
    flags = [name for name in ("channels_last", "compiled", "captured") if getattr(way, name)]
    return " + ".join([way.precision, *flags])


def _read(path: Path) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found
