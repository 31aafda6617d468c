"""The figures of a stretch of training, from what was measured in it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from pipeline.speed.ceiling import Ceilings
from pipeline.speed.communication import NOTHING, Sent
from pipeline.speed.flops import Cost
from pipeline.speed.phases import PHASES


class Stretch(NamedTuple):
    """Steps that were measured together, on one rank of several that do equal work."""

    steps: int
    images: int
    """Of all ranks."""
    seconds: float
    """From the first step's start to the last one's end."""
    phases: Mapping[str, float]
    """Seconds by phase, of this rank."""
    sent: Sent = NOTHING
    joules: float | None = None
    """Of this rank's device; None where nothing counts them."""


def speed(
    stretch: Stretch, per_image: Cost, ceilings: Ceilings, precision: torch.dtype | None, ranks: int = 1
) -> dict[str, float]:
    """`speed/<figure>` -> value. Shares of the time add up to one with `share_other`, what no phase has claimed.

    FLOP/s and bytes/s are one device's, beside its own ceilings. `share_of_copy_ceiling` may exceed one where caches
    serve what operators read. `share_communication` is the exposed part of the all-reduces; the part that passed behind
    the backward, `share_communication_hidden`, is not in the sum.
    """
    own_images_per_s = stretch.images / ranks / stretch.seconds
    flop_per_s = per_image.flop * own_images_per_s
    figures = {
        "images_per_s": stretch.images / stretch.seconds,
        "step_s": stretch.seconds / stretch.steps,
        "flop_per_image": float(per_image.flop),
        "flop_per_s": flop_per_s,
        "share_of_matmul_ceiling": flop_per_s / ceilings.flop_per_s(precision),
    }
    if per_image.bytes is not None:
        figures["bytes_per_s"] = per_image.bytes * own_images_per_s
        figures["share_of_copy_ceiling"] = figures["bytes_per_s"] / ceilings.copy_bytes_per_s
    figures |= _shares(stretch)
    if ranks > 1:
        figures["share_communication_hidden"] = (stretch.sent.seconds - stretch.sent.exposed) / stretch.seconds
        figures["gradient_bytes_per_step"] = stretch.sent.bytes / stretch.steps
    if stretch.joules is not None:
        figures["joules_per_image"] = stretch.joules * ranks / stretch.images
        figures["watts"] = stretch.joules / stretch.seconds
    return {f"speed/{name}": value for name, value in figures.items()}


def _shares(stretch: Stretch) -> dict[str, float]:
    """Of the time, by phase. DDP waits for gradients inside `backward`: that part is communication."""
    taken = dict.fromkeys(PHASES, 0.0) | dict(stretch.phases)
    taken["backward"] -= stretch.sent.exposed
    taken["communication"] += stretch.sent.exposed
    shares = {f"share_{phase}": spent / stretch.seconds for phase, spent in taken.items()}
    return shares | {"share_other": 1 - sum(shares.values())}
