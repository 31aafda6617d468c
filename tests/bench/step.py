"""The step beside its peers: images/s on the same networks, images and batch, in turn in one process.

    .venv/bin/python -m tests.bench.step [--quick] [--pairs N]      (make .venv/bench installs pythae)

Conv networks of width 16 at 3x32x32 (0.77 M parameters), batch 128, two threads. Ours is what the training loop runs:
uint8 images from memory, normalised; noise drawn from the seed; every turn; the moving average of the weights. The bare
loops have equal arithmetic and images that are ready; pythae has its DataLoader on float images in memory.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tests.bench.common import SMALL, alternating, arguments, machine, rate, ratios, spread, table
from tests.bench.peers import bare_joint, bare_plain, pythae_epoch
from vaegan import VAEGAN, build, config
from vaegan.average import moving_average
from vaegan.execution import Execution, assemble
from vaegan.objective import weights_at
from vaegan.step import Batch, Noise

SHAPE, BATCH, THREADS, IMAGES = (3, 32, 32), 128, 2, 512
LAYER = 2
OBJECTIVES = {
    "plain": config.Objective(),
    "joint": config.Objective(schedule="joint", reconstruction="features", feature_layer=LAYER),
}
PASSES = {
    "plain": "D; generator; VAE on pixels. Decoder 2 forward, D 3 forward",
    "joint": "D; VAE on D's features. Decoder 2 forward, D 5 forward",
    "pythae": "all at once, on D's features, 3 backwards. Decoder 2 forward, D 4 forward",
}
"""In passes of a batch; backwards are as many or fewer, see `tests/vaegan/test_execution.py`."""
PRECISIONS = {"fp32": Execution(channels_last=True), "bf16": Execution(precision="bf16")}
"""What candidates() chooses on a CPU."""


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__).parse_args(argv)
    torch.set_num_threads(THREADS)
    print(machine())
    seconds, pairs = (0.5, 1) if given.quick else (4.0, given.pairs)
    images = torch.randint(256, (IMAGES, *SHAPE), dtype=torch.uint8)
    variants = {"pythae": _timed(pythae_epoch(_model(*SHAPE), images / 255, BATCH, LAYER), IMAGES, seconds)}
    for name, objective in OBJECTIVES.items():
        for precision, execution in PRECISIONS.items():
            variants[f"{name} {precision}"] = _timed(ours(objective, execution, images), BATCH, seconds)
            variants[f"{name} {precision} bare"] = _timed(bare(name, precision, images), BATCH, seconds)
    found = alternating(variants, pairs)
    rows = [["pythae 0.1.2", "fp32", spread(found["pythae"]), "1", "", PASSES["pythae"]]]
    for name in OBJECTIVES:
        for precision in PRECISIONS:
            rates = found[f"{name} {precision}"]
            of_pythae = spread(ratios(rates, found["pythae"]), ".2f")
            of_bare = spread(ratios(rates, found[f"{name} {precision} bare"]), ".3f")
            rows.append([name, precision, spread(rates), of_pythae, of_bare, PASSES[name]])
    title = (
        f"A step of {BATCH} images, {THREADS} threads (targets: 2.4 times pythae, 1.9 in fp32; 0.95 of the bare loop)"
    )
    table(title, ["schedule", "", "images/s", "times pythae", "of the bare loop", "turns, passes"], rows)


def ours(objective: config.Objective, execution: Execution, images: Tensor) -> Callable[[], object]:
    """A step of the training loop, without files or Ray; images: (N, C, H, W) uint8."""
    model = _model(*images.shape[1:])
    engine = assemble(model, objective, config.Optimizers(), execution)
    average = moving_average(engine.players["autoencoder"].network, 20_000, BATCH)
    generator = torch.Generator()
    seen = 0

    def step() -> None:
        nonlocal seen
        rows = torch.arange(seen, seen + BATCH) % len(images)
        noise = Noise(*torch.randn(2, BATCH, SMALL.latent, generator=generator.manual_seed(seen)))
        engine(Batch(images[rows].float() / 255), noise, weights_at(objective, seen))
        average.update()
        seen += BATCH

    return step


def bare(name: str, precision: str, images: Tensor) -> Callable[[], object]:
    model, bf16 = _model(*SHAPE), precision == "bf16"
    ready = images[:BATCH] / 255
    if PRECISIONS[precision].channels_last:
        model, ready = model.to(memory_format=torch.channels_last), ready.contiguous(memory_format=torch.channels_last)
    return bare_plain(model, ready, bf16) if name == "plain" else bare_joint(model, ready, bf16, LAYER)


def _model(*shape: int) -> VAEGAN:
    torch.manual_seed(0)
    return build(SMALL, config.Likelihood(), shape)  # type: ignore[arg-type]


def _timed(step: Callable[[], object], images: int, seconds: float) -> Callable[[], float]:
    return partial(rate, step, images, seconds)


if __name__ == "__main__":
    main()
