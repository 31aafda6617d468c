"""Joules of a GPU, by its own counter, where there is one."""

from collections.abc import Callable

import torch

Counter = Callable[[], float | None]
"""Joules since some moment in the past; None where that can't be told any more."""


class Energy:
    """The joules between readings; on a shared GPU, everybody's. counter: None where nothing counts."""

    def __init__(self, counter: Counter | None) -> None:
        self._counter = counter
        self._before = counter() if counter is not None else None

    def read(self) -> float | None:
        """Joules since the last reading, or None where nothing counts."""
        if self._counter is None:
            return None
        before, self._before = self._before, self._counter()
        return None if before is None or self._before is None else self._before - before


def energy_of(device: torch.device) -> Energy:
    """Of the whole device; of no CPU."""
    if device.type != "cuda":
        return Energy(None)
    return Energy(nvml_counter(f"GPU-{torch.cuda.get_device_properties(device).uuid}"))


def nvml_counter(uuid: str) -> Counter | None:
    """NVML's counter of the GPU with this UUID: indices of NVML and of CUDA_VISIBLE_DEVICES are not the same.

    None without the module `pynvml` (nvidia-ml-py), and where the driver or the GPU does not count.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def joules() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it counts millijoules
        except pynvml.NVMLError:  # a run does not end because nobody counts
            return None

    return joules
