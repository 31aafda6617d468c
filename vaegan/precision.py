"""Mixed precision: networks compute in bf16, and whatever is summed into a loss is at least float32.

Weights, gradients, optimiser states and losses keep their precision; only what passes between the layers is lowered.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def lowered(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context in which layers compute in `dtype`; None leaves them as they are."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def raised(tensor: Tensor) -> Tensor:
    """At least float32: sums over thousands of pixels have no business in 8 bits of mantissa."""
    return tensor.float() if tensor.dtype in {torch.bfloat16, torch.float16} else tensor
