"""What a device can do at its best: a matrix product and a copy, measured in under 2 s."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

BUDGET_S = 0.2
"""For each of the three measurements, warm-up apart."""
PRODUCT_S = 0.01
"""Products grow until one takes so long, or until they are as large as they may be."""
LARGEST_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**29}


class Ceilings(NamedTuple):
    """Of one device, with the threads and the settings of torch that are in force."""

    fp32_flop_per_s: float
    """Floating point operations a second of a square matrix product; TF32 where torch.backends allows it."""
    bf16_flop_per_s: float
    copy_bytes_per_s: float
    """Bytes read plus bytes written, of a copy within the device's memory."""

    def flop_per_s(self, precision: torch.dtype | None) -> float:
        """For layers that compute in bf16, or in fp32 where None."""
        return self.fp32_flop_per_s if precision is None else self.bf16_flop_per_s


def measure(device: torch.device) -> Ceilings:
    """Measure a device that nobody else uses meanwhile."""
    return Ceilings(
        _products(device, torch.float32),
        _products(device, torch.bfloat16),
        _copies(device),
    )


def does_bf16_well(ceilings: Ceilings) -> bool:
    """Whether bf16 products are at least 1.5 times as fast: less than that, the casts between layers eat up."""
    return ceilings.bf16_flop_per_s >= 1.5 * ceilings.fp32_flop_per_s


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the largest product that is not too slow to repeat."""
    side = 256
    while True:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        out = torch.empty_like(a)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> object:
            return torch.mm(a, b, out=out)

        _seconds(product, device)  # warm-up: libraries load, kernels are chosen
        if _seconds(product, device) >= PRODUCT_S or side == LARGEST_SIDE[device.type]:
            return 2 * side**3 / _best(product, device)
        side *= 2


def _copies(device: torch.device) -> float:
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of at least three runs, and of as many as the budget allows."""
    deadline, fastest = time.perf_counter() + BUDGET_S, float("inf")
    for number in range(1000):
        fastest = min(fastest, _seconds(run, device))
        if number >= 2 and time.perf_counter() > deadline:
            break
    return fastest


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _settle(device)
    start = time.perf_counter()
    run()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
