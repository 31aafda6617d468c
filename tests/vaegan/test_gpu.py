"""On a GPU: the same step as on the CPU, never waited for, however it is computed. `make test-gpu`; needs torch."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.vaegan.small import CONV, JOINT, LARSEN, OPTIMIZERS, PLAIN, drawn
from vaegan import VAEGAN, build, config
from vaegan.average import moving_average
from vaegan.execution import WARM_UP, Engine, Execution, assemble, candidates
from vaegan.objective import weights_at
from vaegan.step import Batch, Noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]

IMAGE = (3, 32, 32)
RMSPROP = config.Optimizer(kind="rmsprop", lr=3e-4, momentum=0.0, decay=0.9)
RMSPROPS = config.Optimizers(autoencoder=RMSPROP, discriminator=RMSPROP, generator=RMSPROP)
OBJECTIVES = {
    "plain": replace(PLAIN, beta_warmup=20, lambda_warmup=30),
    "joint": JOINT,
    "joint, gate": replace(JOINT, gate=config.Gate(equilibrium=0.68, margin=0.01)),
    "larsen": LARSEN,
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
both_optimizers = pytest.mark.parametrize("optimizers", [OPTIMIZERS, RMSPROPS], ids=["adam", "rmsprop"])


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """No TF32, so that what is compared differs by float32's rounding alone."""
    torch.set_default_dtype(torch.float32)
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def engine(
    device: str,
    objective: config.Objective,
    execution: Execution = Execution(),  # noqa: B008
    optimizers: config.Optimizers = OPTIMIZERS,
    *,
    parts: int = 1,
    recompute: bool = False,
) -> tuple[VAEGAN, Engine]:
    torch.manual_seed(7)
    model = build(CONV, objective.likelihood, IMAGE).to(device)
    return model, assemble(model, objective, optimizers, execution, parts=parts, recompute=recompute)


def moved(number: int, device: str, size: int = 6) -> tuple[Batch, Noise]:
    torch.manual_seed(number)
    batch, noise = drawn(size, IMAGE, CONV.latent)
    return Batch(*(value.to(device) for value in batch)), Noise(*(value.to(device) for value in noise))


def trained(device: str, made: tuple[VAEGAN, Engine], objective: config.Objective, steps: int = 8) -> list[Tensor]:
    """Terms of each step, then the weights."""
    model, take = made
    terms = [take(*moved(number, device), weights_at(objective, 6 * number)).cpu() for number in range(steps)]
    return [*terms, *(weight.cpu() for weight in model.state_dict().values())]


@every_objective
@both_optimizers
def test_a_gpu_takes_the_steps_of_a_cpu(objective: config.Objective, optimizers: config.Optimizers) -> None:
    on_cpu, on_gpu = (
        trained(device, engine(device, objective, optimizers=optimizers), objective, steps=2)
        for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(on_gpu[:2], on_cpu[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@every_objective
@both_optimizers
def test_a_captured_step_is_the_step(objective: config.Objective, optimizers: config.Optimizers) -> None:
    """Schedules included: what changes from step to step reaches the replay."""
    eager = trained("cuda", engine("cuda", objective, optimizers=optimizers), objective)
    graph = Execution(captured=True)
    captured = trained("cuda", engine("cuda", objective, graph, optimizers), objective)
    assert len(eager) > WARM_UP + 2
    for ours, theirs in zip(captured, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("execution", candidates(torch.device("cuda"), "bf16", 1), ids=str)
@every_objective
def test_every_candidate_descends(execution: Execution, objective: config.Objective) -> None:
    _, take = engine("cuda", objective, execution)
    batch, noise = moved(0, "cuda", size=64)
    terms = torch.stack([take(batch, noise, weights_at(objective, 64)) for _ in range(20)])
    assert terms.isfinite().all()
    reconstruction = take.names.index("autoencoder/reconstruction")
    assert terms[-1, reconstruction] < terms[1, reconstruction]


@every_objective
@both_optimizers
def test_no_step_waits_for_the_device(objective: config.Objective, optimizers: config.Optimizers) -> None:
    _, take = engine("cuda", objective, Execution(precision="bf16", channels_last=True), optimizers)
    average = moving_average(take.players["autoencoder"].network, 1000, 6)
    inputs = [moved(number, "cuda") for number in range(4)]

    def step(number: int) -> None:
        take(*inputs[number], weights_at(objective, 6 * number))
        average.update()

    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2, 3):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_parts_and_recomputation_take_less_memory() -> None:
    peaks = []
    for parts, recompute in ((1, False), (1, True), (4, False), (4, True)):
        _, take = engine("cuda", LARSEN, parts=parts, recompute=recompute)
        batch, noise = moved(0, "cuda", size=256)
        take(batch, noise, weights_at(LARSEN, 0))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        take(batch, noise, weights_at(LARSEN, 0))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    whole, again, split, both = peaks
    assert again < whole and split < 0.5 * whole and both < split
