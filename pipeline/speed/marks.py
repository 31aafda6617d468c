"""Marks in time, of the host or of a GPU's stream. Making one never waits for the GPU; reading one does."""

import time

import torch

Mark = float | torch.cuda.Event
"""Seconds of the host's clock, or an event on the stream that was current when the mark was made."""


def mark(device: torch.device) -> Mark:
    """Now, or on a GPU when all that the current stream holds so far is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def passed(mark: Mark) -> bool:
    """Whether a mark has been reached, so that reading it takes no wait."""
    return not isinstance(mark, torch.cuda.Event) or mark.query()


def seconds(start: Mark, end: Mark) -> float:
    """Between two marks of one device."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        start.synchronize()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    assert isinstance(start, float) and isinstance(end, float)
    return end - start
