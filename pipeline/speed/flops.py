"""What a step asks of a device, counted operator by operator while it runs."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vaegan import build, config
from vaegan.networks.ports import Shape
from vaegan.objective import players, turns
from vaegan.step import Batch, Noise, step

COUNTED = 2
"""Images of a step whose operations are counted."""


def flop_per_image(networks: config.Networks, objective: config.Objective, shape: Shape) -> float:
    """Floating point operations of a training step, forward and backward, counted in a step of two blank images.

    What is computed again to save memory is not work of the model's, and does not count.
    """
    with torch.device("meta"):
        model = build(networks, objective.likelihood, shape)
    model.to_empty(device="cpu")  # steps on meta would import torch's compiler, which takes seconds
    everyone = players(model, objective, config.Optimizers())
    batch = Batch(torch.empty(COUNTED, *shape))
    posterior_BZ, prior_BZ = torch.empty(2, COUNTED, networks.latent)
    noise = Noise(posterior_BZ, prior_BZ, batch.images if objective.penalty else None)
    weights = dict.fromkeys(("kl", "adversarial", "penalty"), torch.ones(()))
    with FlopCounterMode(display=False) as counter:
        step(turns(objective), everyone, batch, noise, weights)
    return float(counter.get_total_flops() / COUNTED)


class Cost(NamedTuple):
    """Of one step, or of one image."""

    flop: float
    """Floating point operations of matrix products and convolutions, forward and backward; a multiply-add is two."""
    bytes: float | None = None
    """That operators read and write, each by itself: with no cache and nothing fused, the memory's traffic."""

    def over(self, images: int) -> "Cost":
        """Each image's part."""
        return Cost(self.flop / images, None if self.bytes is None else self.bytes / images)


def step_cost(run: Callable[[], object]) -> Cost:
    """What `run` costs, a step on the device's eager operators: compiled ones can't be looked into.

    It runs once and does what it always does, so a run may count its own first step; that one is slower.
    """
    with _Traffic() as traffic, FlopCounterMode(display=False) as counter:
        run()
    return Cost(counter.get_total_flops(), traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Adds up what operators read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read = _tensors([args, kwargs])
        held = {tensor.untyped_storage()._cdata for tensor in read}
        made = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in held]
        written = made + _tensors(list(_changed(func, args, kwargs)))
        if written and "empty" not in func.name():  # a view writes nothing, nor does an allocation
            self.bytes += sum(map(_size, read + written))
        return out


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _changed(func: torch._ops.OpOverload, args: tuple[object, ...], kwargs: dict[str, object]) -> Iterator[object]:
    """The arguments that an operator writes to."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.is_write:
            yield args[number] if number < len(args) else kwargs.get(argument.name)


def _size(tensor: Tensor) -> int:
    """In bytes; of an expanded tensor, those that exist."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
