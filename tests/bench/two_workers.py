"""What DDP costs: two gloo ranks of one thread against two processes of one thread that know nothing of each other.

    .venv/bin/python -m tests.bench.two_workers [--quick] [--pairs N]

Both are the same pair of processes, which take turns, on the word of a barrier, between learners inside DDP and bare
learners; global batch 128, 64 each, conv networks of width 16 at 3x32x32. A third set of learners carries a hook that
times each all-reduce from its start to its end; what of that is not hidden behind the backward is the difference to the
bare learners. Three more ask what limits DDP: all gradients in one bucket, half the bytes, and `waits alone`, which
sends nothing and meets at a barrier before every update. `one process` has the whole batch while the other rests. Ends
with a model of the cost on 256 GPUs.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.ranks import Ranks
from pipeline.settings import load
from pipeline.speed.communication import Communication, Sent
from tests.bench.common import (
    JOINT,
    PLAIN,
    SMALL,
    Training,
    alternating,
    arguments,
    machine,
    ratios,
    spread,
    table,
    training,
)
from tests.vaegan.two_ranks import on_two_ranks
from vaegan import build, config
from vaegan.objective import players

SHAPE, GLOBAL_BATCH, RANKS = (3, 32, 32), 128, 2
OBJECTIVES = {"plain": PLAIN, "joint": JOINT}
TOGETHER = ("control", "DDP", "DDP, hook", "DDP, one bucket", "DDP, bf16", "waits alone")
"""Variants in which both ranks work, and their rates add up."""

Measured = dict[str, list[float]]
"""Variant -> its rates; `in flight`: share of the step's time with an all-reduce under way; `calls`: of them a step."""

NODE, WITHIN, BETWEEN = 8, 450e9, 50e9
"""GPUs of a node; bytes/s of a GPU's NVLink in one direction; bytes/s of a node's 400 Gbit/s."""
LATENCY_WITHIN, LATENCY_BETWEEN = 2e-6, 5e-6
"""Seconds a hop of the ring."""
STEP_MS = (5.0, 20.0, 80.0)
"""Assumed times of a step on one GPU."""
GPUS = (1, 2, 8, 16, 64, 256)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(argv)
    pairs, steps = (1, 2) if given.quick else (given.pairs, 10)
    print(machine())
    found = {name: measured(objective, pairs, steps) for name, objective in OBJECTIVES.items()}
    show(found)
    model_of_cost({name: by_name["calls"][0] for name, by_name in found.items()})


def show(found: dict[str, Measured]) -> None:
    rows = []
    for name, by_variant in found.items():
        control = by_variant["control"]
        for variant in (*TOGETHER, "one process"):
            rates = by_variant[variant]
            rows.append([name, variant, spread(rates), spread(ratios(rates, control), ".3f")])
    table("Two workers of one thread", ["schedule", "", "images/s together", "of the control (target 0.95)"], rows)
    shares = []
    for name, by_variant in found.items():
        exposed = [1 - ratio for ratio in ratios(by_variant["DDP"], by_variant["control"])]
        flight, calls = by_variant["in flight"], by_variant["calls"][0]
        shares.append([name, f"{calls:.0f}", spread(flight, ".1%"), spread(exposed, ".1%")])
    header = ["schedule", "all-reduces a step", "under way, share of the step", "not hidden: 1 - DDP / control"]
    table("Communication", header, shares)


def measured(objective: config.Objective, pairs: int, steps: int) -> Measured:
    """Rates of the two ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = on_two_ranks(on_a_rank, Path(folder), objective, pairs, steps)
    return {
        name: [a + b if name in TOGETHER else a for a, b in zip(first[name], second[name], strict=True)]
        for name in first
    }


def on_a_rank(rank: int, objective: config.Objective, pairs: int, steps: int) -> Measured:
    """This rank's own rates."""
    ranks, share = Ranks(rank, RANKS), GLOBAL_BATCH // RANKS
    bare = training(SMALL, objective, SHAPE, share)
    inside = training(SMALL, objective, SHAPE, share, wrap=ranks.wrap)
    communication = Communication(ranks.device)
    hooked = training(SMALL, objective, SHAPE, share, wrap=lambda learner: communication.watched(ranks.wrap(learner)))
    one_bucket = training(SMALL, objective, SHAPE, share, wrap=in_one_bucket)
    halved = training(SMALL, objective, SHAPE, share, wrap=in_bf16)
    meeting = training(SMALL, objective, SHAPE, share, watch=meet)
    whole = training(SMALL, objective, SHAPE, GLOBAL_BATCH)
    sent: list[Sent] = []

    def timed() -> float:
        rate = _rate(hooked, share, steps)
        sent.append(communication.read())
        return rate

    found = alternating(
        {
            "control": lambda: _rate(bare, share, steps),
            "DDP": lambda: _rate(inside, share, steps),
            "DDP, hook": timed,
            "DDP, one bucket": lambda: _rate(one_bucket, share, steps),
            "DDP, bf16": lambda: _rate(halved, share, steps),
            "waits alone": lambda: _rate(meeting, share, steps),
            "one process": lambda: _rate(whole, GLOBAL_BATCH, steps if rank == 0 else 0),
        },
        pairs,
    )
    counted = sent[1:]  # the first run warms up, and its first step cuts other buckets
    return found | {
        "in flight": [
            one.seconds * rate / share / steps for one, rate in zip(counted, found["DDP, hook"], strict=True)
        ],
        "calls": [one.buckets / steps for one in counted],
    }


def in_one_bucket(learner: nn.Module) -> nn.Module:
    """All gradients at once, when the backward is over: fewer messages, and nothing to hide behind."""
    return DistributedDataParallel(learner, gradient_as_bucket_view=True, bucket_cap_mb=100)


def in_bf16(learner: nn.Module) -> nn.Module:
    """Half the bytes."""
    learner = Ranks(dist.get_rank(), RANKS).wrap(learner)
    assert isinstance(learner, DistributedDataParallel)
    learner.register_comm_hook(None, bf16_compress_hook)
    return learner


def meet(phase: str) -> AbstractContextManager[object]:
    """Ranks that send nothing, and wait for each other where DDP would: before every update."""
    if phase == "update":
        dist.barrier()
    return nullcontext()


def _rate(learning: Training, batch: int, steps: int) -> float:
    """This rank's images/s; both start together."""
    dist.barrier()
    started = time.perf_counter()
    for _ in range(steps):
        learning.step()
    return batch * steps / (time.perf_counter() - started)


def model_of_cost(calls: dict[str, float]) -> None:
    """calls: all-reduces a step of each schedule, as counted here."""
    larsen = load("larsen")
    cases = {f"{name}, width 16, 32 px": (SMALL, OBJECTIVES[name], SHAPE, made) for name, made in calls.items()}
    # at most 25 MiB a bucket, the first of a learner 1 MiB
    big = parameter_bytes(larsen.networks, larsen.objective, (3, 64, 64))
    buckets = sum(2 + size // (25 * 2**20) for size in big)
    cases["`larsen` preset, 64 px"] = (larsen.networks, larsen.objective, (3, 64, 64), float(buckets))
    print(ASSUMPTIONS)
    for name, (networks, objective, shape, reduces) in cases.items():
        size = sum(parameter_bytes(networks, objective, shape))
        rows = [_row(gpus, size, reduces) for gpus in GPUS]
        title = f"{name}: {size / 1e6:.2f} MB of gradients a step in fp32, half in bf16, {reduces:.0f} all-reduces"
        header = ["GPUs", "fp32, ms", "bf16, ms", *(f"{ms:g} ms, fp32: none..full overlap" for ms in STEP_MS)]
        table(title, header, rows)


ASSUMPTIONS = f"""
Model of the cost of gradients on n GPUs, images a GPU constant (weak scaling). Nothing here was measured on a GPU.
  - Ring all-reduce: 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency for each all-reduce; one flat ring.
  - Up to {NODE} GPUs, one node: {WITHIN / 1e9:g} GB/s, {LATENCY_WITHIN * 1e6:g} us a hop. Beyond: the ring is as fast
    as what joins nodes, 400 Gbit/s = {BETWEEN / 1e9:g} GB/s, {LATENCY_BETWEEN * 1e6:g} us a hop. NCCL changes to trees
    where latency dominates, log2 n hops instead of n: this is the worse case.
  - Gradients of every learner, once a step: `plain` sends the decoder's twice, since two learners hold it.
  - The time of a step on one GPU is assumed: {", ".join(f"{ms:g}" for ms in STEP_MS)} ms. Efficiency = step / time of
    a step on n. No overlap: step + communication; full overlap: the longer of both. DDP is between.
  - All ranks are equally fast, data come from nowhere, and nothing else shares the network."""


def parameter_bytes(networks: config.Networks, objective: config.Objective, shape: tuple[int, int, int]) -> list[int]:
    """Of each learner, in float32."""
    with torch.device("meta"):
        model = build(networks, objective.likelihood, shape)
    everyone = players(model, objective, config.Optimizers()).values()
    return [sum(4 * parameter.numel() for parameter in player.network.parameters()) for player in everyone]


def all_reduce_s(gpus: int, size: float, calls: float) -> float:
    bandwidth, latency = (WITHIN, LATENCY_WITHIN) if gpus <= NODE else (BETWEEN, LATENCY_BETWEEN)
    return 2 * (gpus - 1) / gpus * size / bandwidth + calls * 2 * (gpus - 1) * latency


def _row(gpus: int, size: int, calls: float) -> list[str]:
    full, half = (1e3 * all_reduce_s(gpus, sent, calls) for sent in (size, size / 2))
    efficiencies = [f"{ms / (ms + full):.3f}..{ms / max(ms, full):.3f}" for ms in STEP_MS]
    return [str(gpus), f"{full:.3f}", f"{half:.3f}", *efficiencies]


if __name__ == "__main__":
    main()
