"""Illnesses that tests and benchmarks provoke in runs, and what runs say of them."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tests.pipeline.small import Run
from vaegan.networks import conv, mlp


def warnings(done: Run) -> list[tuple[int, str]]:
    """Images seen and text, without that of a hasty checkpoint rule."""
    found = [(event.step, str(event.body["text"])) for event in done.events if event.kind == "warning"]
    return [(images, text) for images, text in found if not text.startswith("checkpoints.every")]


def named(done: Run) -> dict[str, int]:
    """Sign -> images seen when it was named first."""
    found: dict[str, int] = {}
    for images, text in warnings(done):
        found.setdefault(re.split(r"\W", text)[0], images)
    return found


@contextmanager
def nan_at_step(step: int, share: int) -> Iterator[None]:
    """The encoder's output in one training step is not a number. share: images that a step takes of a rank."""
    taken = 0

    def poison(module: nn.Module, _: object, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        nonlocal taken
        if isinstance(module, mlp.Encoder | conv.Encoder) and torch.is_grad_enabled() and len(output[0]) == share:
            taken += 1
            return (output[0] * math.nan, output[1]) if taken == step else None
        return None

    hook = register_module_forward_hook(poison)
    try:
        yield
    finally:
        hook.remove()
