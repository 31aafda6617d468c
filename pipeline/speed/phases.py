"""Where the time of a step goes, found without waiting for the device."""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from pipeline.speed.marks import Mark, mark, passed, seconds

PHASES = ("data", "forward", "backward", "update", "communication", "wait")
"""`data`: batch and noise onto the device. `forward`, `backward`, `update`: vaegan.step. `communication`: what the
backward waits for gradients of other ranks. `wait`: agreements between ranks, which wait for the slowest. A captured
step is one phase, `step`, instead."""


class Phases:
    """`with phases("data"): ...`, and `watch=phases` for a step. Inside each other, the inner takes its time out of the
    outer: seconds are counted once.

    On a GPU they are the stream's seconds, not the host's: a host that keeps ahead costs nothing. A step that is
    captured as a graph can't be looked into: enter one phase around its replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[str] = []
        self._since: Mark = 0.0
        self._spans: deque[_Span] = deque()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time in here belongs to `phase`."""
        self._turn()
        self._open.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last reading. On a GPU this waits for the phases that are under way."""
        self._add(len(self._spans))
        read, self._seconds = dict(self._seconds), defaultdict(float)
        return read

    def _turn(self) -> None:
        """Who was innermost until now has had the time since the last turn."""
        now = mark(self._device)
        if self._open:
            self._spans.append(_Span(self._open[-1], self._since, now))
        self._since = now
        while self._spans and passed(self._spans[0].end):  # a long interval must not pile up events
            self._add(1)

    def _add(self, count: int) -> None:
        for _ in range(count):
            span = self._spans.popleft()
            self._seconds[span.phase] += seconds(span.start, span.end)


class _Span(NamedTuple):
    phase: str
    start: Mark
    end: Mark
