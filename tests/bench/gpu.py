"""Every way to compute a step on a GPU: images/s, and what share of the device's ceilings that is.

    python -m tests.bench.gpu [--quick] [--pairs N] [--device cpu]       (or: make bench-gpu)

Needs torch, and pythae 0.1.2 for its row at 32 px, which is left out where that is not installed. Networks of the
published width (64) on 3-channel images of 32, 64 and 128 px, batch 128, schedule `plain`, the default. Operations are
those that the model asks for; bytes are what eager operators read and write, nothing fused. In turn, in one process.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from pipeline.speed.ceiling import Ceilings, measure
from pipeline.speed.flops import Cost, flop_per_image, step_cost
from pipeline.speed.marks import mark, seconds
from tests.bench.common import alternating, arguments, machine, ratios, spread, table
from tests.bench.peers import pythae_epoch
from vaegan import VAEGAN, build, config
from vaegan.average import moving_average
from vaegan.execution import WARM_UP, Execution, assemble, prepare
from vaegan.objective import weights_at
from vaegan.step import Batch, Noise

SIZES, BATCH, LAYER, STEPS = (32, 64, 128), 128, 2, 20
OBJECTIVE = config.Objective()
WAYS = {
    "fp32 eager": Execution(),
    "bf16": Execution(precision="bf16"),
    "+ channels_last": Execution(precision="bf16", channels_last=True),
    "+ compile": Execution(precision="bf16", channels_last=True, compiled=True),
    "+ CUDA graph": Execution(precision="bf16", channels_last=True, captured=True),
    "+ compile + CUDA graph": Execution(precision="bf16", channels_last=True, compiled=True, captured=True),
}
"""The last three add to the third. The first leaves torch as it comes: TF32 in convolutions, not in products."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that this runs (default: cuda)")
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    print(machine() + (f"; {torch.cuda.get_device_name()}" if device.type == "cuda" else ""))
    prepare(device)
    ceilings = measure(device)
    print(
        f"ceilings: {ceilings.fp32_flop_per_s / 1e12:.2f} TFLOP/s fp32 (TF32 on a GPU), "
        f"{ceilings.bf16_flop_per_s / 1e12:.2f} bf16, {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s copy"
    )
    for side in SIZES[:1] if given.quick else SIZES:
        measured(side, device, ceilings, given)


def measured(side: int, device: torch.device, ceilings: Ceilings, given: argparse.Namespace) -> None:
    """One table."""
    networks = config.Networks(width=16 if given.quick else 64, latent=128)
    batch, steps, pairs = (8, 1, 1) if given.quick else (BATCH, STEPS, given.pairs)
    shape = (3, side, side)
    images = torch.randint(256, (4 * batch, *shape), dtype=torch.uint8, device=device)
    ways = {name: way for name, way in WAYS.items() if device.type == "cuda" or not (way.compiled or way.captured)}
    variants = {name: timed(ours(networks, images, batch, way), batch, steps, device) for name, way in ways.items()}
    if side == 32 and find_spec("pythae") is not None:
        epoch = pythae_epoch(_model(networks, images), images / 255, batch, LAYER)
        variants["pythae 0.1.2"] = timed(epoch, len(images), 1, device)
    variants["fp32 eager"] = partial(as_torch_comes, variants["fp32 eager"], device)
    found = alternating(variants, pairs)
    flop = flop_per_image(networks, OBJECTIVE, shape)
    rows = []
    for name, rates in found.items():
        per_s = sorted(rates)[len(rates) // 2]
        way = WAYS.get(name)
        shares = ["", ""] if way is None else _shares(per_s, flop, way, ceilings, networks, images, batch)
        rows.append([name, spread(rates), spread(ratios(rates, found["fp32 eager"]), ".2f"), *shares])
    table(
        f"{side} px, batch {batch}, {flop / 1e9:.2f} GFLOP an image",
        ["", "images/s", "times fp32 eager", "of the matmul ceiling", "of the copy ceiling"],
        rows,
    )
    _say_default(found)


def _say_default(found: dict[str, list[float]]) -> None:
    """What a run would choose by measurement, beside plain float32 and pythae (targets: 4 and 8 times)."""
    chosen = max(found, key=lambda name: sorted(found[name])[len(found[name]) // 2] if name in WAYS else 0.0)
    text = (
        f"chosen by measurement: {chosen}, {spread(ratios(found[chosen], found['fp32 eager']), '.2f')} times fp32 eager"
    )
    if "pythae 0.1.2" in found:
        text += f", {spread(ratios(found[chosen], found['pythae 0.1.2']), '.2f')} times pythae"
    print(f"\n{text}")


def _shares(
    per_s: float,
    flop: float,
    way: Execution,
    ceilings: Ceilings,
    networks: config.Networks,
    images: Tensor,
    batch: int,
) -> list[str]:
    eager = Execution(precision=way.precision, channels_last=way.channels_last)
    cost: Cost = step_cost(ours(networks, images, batch, eager)).over(batch)
    assert cost.bytes is not None
    matmul = flop * per_s / ceilings.flop_per_s(way.dtype)
    return [f"{matmul:.1%}", f"{cost.bytes * per_s / ceilings.copy_bytes_per_s:.1%}"]


def ours(networks: config.Networks, images: Tensor, batch: int, way: Execution) -> Callable[[], object]:
    """A step as the training loop takes it from a set that lies on the device; images: (N, C, S, S) uint8."""
    model = _model(networks, images)
    engine = assemble(model, OBJECTIVE, config.Optimizers(), way)
    average = moving_average(engine.players["autoencoder"].network, 20_000, batch)
    seen = 0

    def step() -> None:
        nonlocal seen
        rows = torch.arange(seen, seen + batch, device=images.device) % len(images)
        noise = torch.randn(2, batch, networks.latent, device=images.device)
        engine(Batch(images[rows].float() / 255), Noise(*noise), weights_at(OBJECTIVE, seen))
        average.update()
        seen += batch

    return step


def timed(step: Callable[[], object], images: int, steps: int, device: torch.device) -> Callable[[], float]:
    """Images/s of so many steps, by the device's own clock."""

    def run() -> float:
        for _ in range(WARM_UP + 1):
            step()
        start = mark(device)
        for _ in range(steps):
            step()
        return steps * images / seconds(start, mark(device))

    return run


def as_torch_comes(run: Callable[[], float], device: torch.device) -> float:
    """Without the switches that `vaegan.execution.prepare` turns."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    try:
        return run()
    finally:
        prepare(device)


def _model(networks: config.Networks, images: Tensor) -> VAEGAN:
    torch.manual_seed(0)
    return build(networks, OBJECTIVE.likelihood, tuple(images.shape[1:])).to(images.device)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
