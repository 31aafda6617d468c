"""However a step is computed, it is the same step. B batch, Z latent."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.vaegan.small import CONV, JOINT, LARSEN, MLP, OPTIMIZERS, PLAIN, SHAPE, drawn
from vaegan import build, config
from vaegan.execution import Engine, Execution, assemble, candidates
from vaegan.objective import turns, weights_at
from vaegan.step import step

OBJECTIVES = {
    "plain": PLAIN,
    "plain, features": replace(PLAIN, reconstruction="features"),
    "joint": JOINT,
    "joint, gate": replace(JOINT, gate=config.Gate(equilibrium=0.68, margin=0.01)),
    "larsen": LARSEN,
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
IMAGE = (1, 32, 32)
BF16 = Execution(precision="bf16")

Shape = tuple[int, int, int]


def engine(
    objective: config.Objective,
    execution: Execution = Execution(),  # noqa: B008
    networks: config.Networks = MLP,
    shape: Shape = SHAPE,
    *,
    parts: int = 1,
    recompute: bool = False,
) -> tuple[nn.Module, Engine]:
    torch.manual_seed(7)
    model = build(networks, objective.likelihood, shape)
    return model, assemble(model, objective, OPTIMIZERS, execution, parts=parts, recompute=recompute)


def trained(objective: config.Objective, made: tuple[nn.Module, Engine], shape: Shape = SHAPE) -> dict[str, Tensor]:
    """Weights and terms after three steps of 6 images."""
    model, take = made
    torch.manual_seed(8)
    means = [take(*drawn(6, shape, 3), weights_at(objective, 6 * number)) for number in range(3)]
    return model.state_dict() | {f"{number}": mean for number, mean in enumerate(means)}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@every_objective
def test_gradients_accumulated_over_parts_are_those_of_the_whole(objective: config.Objective) -> None:
    whole = trained(objective, engine(objective))
    for parts in (2, 3, 6):
        close(trained(objective, engine(objective, parts=parts)), whole, 1e-12)


@every_objective
def test_what_is_computed_again_is_what_was_forgotten(objective: config.Objective) -> None:
    kept = trained(objective, engine(objective, networks=CONV, shape=IMAGE), IMAGE)
    for parts in (1, 2):
        again = engine(objective, networks=CONV, shape=IMAGE, parts=parts, recompute=True)
        close(trained(objective, again, IMAGE), kept, 1e-12)


def test_recomputing_keeps_fewer_activations() -> None:
    def kept(recompute: bool) -> int:
        _, take = engine(JOINT, networks=CONV, shape=IMAGE, recompute=recompute)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        images, noise = drawn(6, IMAGE, 3)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            take.players["autoencoder"].learner(images.images, noise.posterior_BZ, noise.prior_BZ)
            take.players["discriminator"].learner(images.images)
        return sum(sizes)

    assert kept(recompute=True) < 0.6 * kept(recompute=False)


@every_objective
def test_the_memory_format_changes_nothing_but_rounding(objective: config.Objective) -> None:
    plain = trained(objective, engine(objective, networks=CONV, shape=IMAGE), IMAGE)
    last = engine(objective, Execution(channels_last=True), CONV, IMAGE)
    close(trained(objective, last, IMAGE), plain, 1e-9)
    weight = last[0].encoder.blocks[1].convolution.weight  # type: ignore[union-attr, index]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_an_engine_names_the_means_of_what_a_step_returns() -> None:
    _, take = engine(LARSEN)
    torch.manual_seed(8)
    batch, noise = drawn(6, SHAPE, 3)
    means = take(batch, noise, weights_at(LARSEN, 0))
    _, again = engine(LARSEN)
    terms = step(turns(LARSEN), again.players, batch, noise, weights_at(LARSEN, 0))
    assert take.names == tuple(terms)
    torch.testing.assert_close(means, torch.stack([term.mean() for term in terms.values()]))


# --- bf16 -------------------------------------------------------------------------------------------------------------


@every_objective
def test_in_bf16_layers_are_lowered_and_losses_weights_and_optimisers_are_not(objective: config.Objective) -> None:
    with in_float32():
        model, take = engine(objective, BF16, CONV, IMAGE)
        layers: set[torch.dtype] = set()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.register_forward_hook(lambda _, __, output: layers.add(output.dtype))
        batch, noise = drawn(6, IMAGE, 3)
        terms = step(turns(objective), take.players, batch, noise, weights_at(objective, 0))
        assert layers == {torch.bfloat16}
        assert {term.dtype for term in terms.values()} == {torch.float32}
        states = [
            value
            for player in take.players.values()
            for state in player.optimizer.state.values()
            for value in state.values()
        ]
        assert {value.dtype for value in [*model.parameters(), *states]} == {torch.float32}
        assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {
            torch.float32
        }


@every_objective
def test_bf16_descends_the_same_way(objective: config.Objective) -> None:
    """Each player's first gradient, 2^-8 of rounding a number apart from float32's."""
    with in_float32():
        gradients = []
        for execution in (Execution(), BF16):
            model, take = engine(replace(objective, gate=None), execution, CONV, IMAGE)
            torch.manual_seed(8)
            take(*drawn(64, IMAGE, 3), weights_at(objective, 0))
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    exact, lowered = gradients
    assert torch.cosine_similarity(exact, lowered, dim=0) > 0.99
    assert not torch.equal(exact, lowered)


def test_what_is_kept_of_a_bf16_run_is_used_in_float32() -> None:
    with in_float32():
        _, take = engine(JOINT, BF16, CONV, IMAGE)
        autoencoder = take.players["autoencoder"].network
        found = autoencoder.reconstruct(torch.rand(2, *IMAGE))  # type: ignore[operator]
        exact, _ = engine(JOINT, Execution(), CONV, IMAGE)
        torch.manual_seed(0)
        images = torch.rand(2, *IMAGE)
        assert found.dtype == torch.float32
        assert torch.equal(autoencoder.reconstruct(images), exact.reconstruct(images))  # type: ignore[operator]


class in_float32:  # noqa: N801
    """bf16 is half of float32; autocast leaves float64 alone."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float32)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float64)


# --- what is shared ---------------------------------------------------------------------------------------------------

PASSES = {
    "plain": (PLAIN, {"encoder": [6], "decoder": [6, 6], "discriminator": [12, 6]}),
    "joint": (JOINT, {"encoder": [6], "decoder": [12], "discriminator": [12, 6]}),
    "larsen": (LARSEN, {"encoder": [6], "decoder": [18], "discriminator": [18, 18, 6]}),
}


@pytest.mark.parametrize(("objective", "expected"), PASSES.values(), ids=PASSES.keys())
def test_a_step_passes_no_image_twice_through_the_same_weights(
    objective: config.Objective, expected: dict[str, list[int]]
) -> None:
    """plain: the decoder draws samples, moves, and reconstructs. joint: one pass of the autoencoder for both turns."""
    model, take = engine(objective)
    passes: dict[str, list[int]] = {name: [] for name in expected}

    def count(name: str, _: nn.Module, inputs: tuple[Tensor], __: object) -> None:
        passes[name].append(len(inputs[0]))

    for name in expected:
        getattr(model, name).fc1.register_forward_hook(partial(count, name))
    take(*drawn(6, SHAPE, 3), weights_at(objective, 0))
    assert passes == expected


def test_a_cpu_has_nothing_to_choose_and_several_gpus_no_graph() -> None:
    assert candidates(torch.device("cpu"), "bf16", 1) == (Execution(precision="bf16"),)
    assert candidates(torch.device("cpu"), "fp32", 2) == (Execution(channels_last=True),)
    alone, together = (candidates(torch.device("cuda"), "bf16", ranks) for ranks in (1, 2))
    assert len(alone) == 4 and len(together) == 2
    assert not any(execution.captured for execution in together)
    assert alone[0] == together[0] == Execution(precision="bf16", channels_last=True)
