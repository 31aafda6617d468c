"""How long gradients travel between ranks, and how much of that the backward does not hide."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pipeline.speed.marks import Mark, mark, passed, seconds


class Sent(NamedTuple):
    """What one rank's gradients took."""

    seconds: float
    """With an all-reduce under way, whether or not the backward computed meanwhile."""
    exposed: float
    """Seconds of these in which nothing was left to compute: a part of the phase `backward`."""
    bytes: int
    """That entered all-reduces. A ring sends 2 (n - 1) / n of them over each link of n ranks."""
    buckets: int
    """All-reduces that they went in."""


NOTHING = Sent(0.0, 0.0, 0, 0)


class Communication:
    """Averages the gradients of DDP learners over the ranks as DDP itself would, and keeps the time.

    compressed: gradients travel as bf16, half the bytes, and are float32 again before the optimiser sees them.
    """

    def __init__(self, device: torch.device, *, compressed: bool = False) -> None:
        self._device = device
        self._average = bf16_compress_hook if compressed else allreduce_hook
        self._bytes_each = 2 if compressed else None
        self._current: list[_Bucket] = []
        self._backwards: deque[list[_Bucket]] = deque()
        self._sent = NOTHING

    def watched(self, learner: nn.Module) -> nn.Module:
        """The same learner; where it is inside DDP, its all-reduces are timed from now on."""
        if isinstance(learner, DistributedDataParallel):
            learner.register_comm_hook(None, self._all_reduce)
        return learner

    def read(self) -> Sent:
        """Of the backwards since the last reading. On a GPU this waits for those under way."""
        self._add(len(self._backwards))
        read, self._sent = self._sent, NOTHING
        return read

    def _all_reduce(self, state: object, bucket: GradBucket) -> Future[Tensor]:
        gradients = bucket.buffer()
        sent = _Bucket(mark(self._device), gradients.numel() * (self._bytes_each or gradients.element_size()))
        self._current.append(sent)
        if bucket.is_last():
            self._end_of_backward()
        averaged = self._average(None, bucket)  # type: ignore[arg-type]  # None: among all ranks
        return averaged.then(lambda done: self._arrived(sent, done))

    def _arrived(self, sent: "_Bucket", done: Future[Tensor]) -> Tensor:
        sent.end = mark(self._device)  # on a GPU, of the stream that follows the all-reduce
        return done.value()

    def _end_of_backward(self) -> None:
        while self._backwards and all(bucket.arrived for bucket in self._backwards[0]):
            self._add(1)  # a long interval must not pile up events
        self._backwards.append(self._current)
        self._current = []

    def _add(self, count: int) -> None:
        for _ in range(count):
            buckets = self._backwards.popleft()
            busy, exposed = spent([bucket.times(buckets[0].start) for bucket in buckets])
            before, sent = self._sent, sum(bucket.bytes for bucket in buckets)
            self._sent = Sent(
                before.seconds + busy, before.exposed + exposed, before.bytes + sent, before.buckets + len(buckets)
            )


@dataclass
class _Bucket:
    """Gradients that travel together."""

    start: Mark
    bytes: int
    end: Mark | None = None

    @property
    def arrived(self) -> bool:
        return self.end is not None and passed(self.end)

    def times(self, origin: Mark) -> tuple[float, float]:
        assert self.end is not None, "backward() returns once all gradients have arrived"
        return seconds(origin, self.start), seconds(origin, self.end)


def spent(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(seconds with at least one bucket under way, seconds of these after the last bucket left).

    times: (start, end) of one backward's buckets, in the order they left. DDP sends the last one when no gradient is
    left to compute.
    """
    busy, until = 0.0, 0.0
    for start, end in times:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy, until - times[-1][0]
