"""How a step is computed on a device. Nothing here changes what is computed, but for its precision.

`assemble` makes an Engine: the players of a schedule, in a memory format, a precision, perhaps compiled, and perhaps
replayed from one CUDA graph. B batch, T terms.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vaegan import config
from vaegan.model import VAEGAN, Learner
from vaegan.objective import players, turns
from vaegan.step import Agree, Batch, Noise, Players, Terms, Turn, Watch, Weights, alone, step, unwatched

Precision = Literal["fp32", "bf16"]

WARM_UP = 3
"""Steps before a capture: they create the optimisers' states, and let libraries choose their algorithms."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One way to compute a step."""

    precision: Precision = "fp32"
    """What layers compute in; weights, losses and optimisers are float32 either way."""
    channels_last: bool = False
    """Images lie in memory with their channels innermost, as matrix units want them."""
    compiled: bool = False
    """Each learner through torch.compile."""
    captured: bool = False
    """The whole step as one CUDA graph; for one process."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What layers compute in; None is that of the weights."""
        return torch.bfloat16 if self.precision == "bf16" else None


def candidates(device: torch.device, precision: Precision, ranks: int) -> tuple[Execution, ...]:
    """The ways worth measuring on a device, the safest first; a single one where there is nothing to choose.

    On a CPU there is none: compilation takes longer than most runs gain, and oneDNN is faster on channels_last in
    float32 but not in bf16, where PyTorch's GroupNorm is slow on it (`tests/bench/step.py` measures both).
    """
    if device.type != "cuda":
        return (Execution(precision=precision, channels_last=precision == "fp32"),)
    return tuple(
        Execution(precision=precision, channels_last=True, compiled=compiled, captured=captured)
        for captured in ((False, True) if ranks == 1 else (False,))
        for compiled in (False, True)
    )


def prepare(device: torch.device) -> None:
    """Process-wide switches: TF32 where float32 is asked for on a GPU, convolutions chosen by measurement."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


@contextmanager
def exact() -> Iterator[None]:
    """float32 without TF32 for as long as it takes, as on a CPU."""
    matmuls, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmuls)
        torch.backends.cudnn.allow_tf32 = convolutions


class Engine:
    """A step as one call. None waits for the device but the one that is captured, once."""

    def __init__(
        self, turns: Sequence[Turn], players: Players, execution: Execution, agree: Agree = alone, parts: int = 1
    ) -> None:
        """parts: see `vaegan.step.step`."""
        self.players = players
        self.execution = execution
        self.names: tuple[str, ...] = ()
        """Of the terms, `turn/term`, once a step has been taken."""
        self._turns = turns
        self._agree = agree
        self._parts = parts
        self._taken = 0
        self._captured: _Captured | None = None

    def __call__(self, batch: Batch, noise: Noise, weights: Weights, watch: Watch = unwatched) -> Tensor:
        """Take a step. Returns the mean of each term over the batch, (T,), on the device."""
        if self.execution.channels_last:
            batch = Batch(batch.images.contiguous(memory_format=torch.channels_last))
        self._taken += 1
        if not self.execution.captured:
            return self._means(self._step(batch, noise, weights, watch))
        with watch("step"):  # its phases can't be told apart in a replay
            if self._taken <= WARM_UP:
                return _beside(lambda: self._means(self._step(batch, noise, weights, unwatched)))
            if self._captured is None:
                self._captured = _Captured(self._from_tensors, batch, noise, weights)
            return self._captured(batch, noise, weights)

    def forget(self) -> None:
        """Record a captured step anew: the players have taken up other states."""
        self._taken, self._captured = 0, None

    def _step(self, batch: Batch, noise: Noise, weights: Weights, watch: Watch) -> Terms:
        return step(self._turns, self.players, batch, noise, weights, self._agree, parts=self._parts, watch=watch)

    def _from_tensors(self, batch: Batch, noise: Noise, weights: Weights) -> Tensor:
        for player in self.players.values():  # gradients of steps before live outside of the graph's memory
            player.optimizer.zero_grad(set_to_none=True)
        return self._means(self._step(batch, noise, weights, unwatched))

    def _means(self, terms: Terms) -> Tensor:
        self.names = tuple(terms)
        return torch.stack([term.mean() for term in terms.values()])


class _Captured:
    """A step recorded once: what comes in is copied to where the recording reads, and what it wrote is copied out."""

    def __init__(
        self, take: Callable[[Batch, Noise, Weights], Tensor], batch: Batch, noise: Noise, weights: Weights
    ) -> None:
        device = batch.images.device
        self._batch = Batch(*(value.clone() for value in batch))
        self._noise = noise.each(torch.clone)
        self._weights = {name: weight.to(device, copy=True) for name, weight in weights.items()}
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._means = take(self._batch, self._noise, self._weights)

    def __call__(self, batch: Batch, noise: Noise, weights: Weights) -> Tensor:
        for own, new in zip((*self._batch, *self._noise), (*batch, *noise), strict=True):
            if own is not None and new is not None:
                own.copy_(new, non_blocking=True)
        for name, weight in weights.items():
            self._weights[name].copy_(weight, non_blocking=True)
        self._graph.replay()
        return self._means.clone()


def _beside(work: Callable[[], Tensor]) -> Tensor:
    """On a stream of its own, as a capture's warm-up has to be."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        result = work()
    current.wait_stream(side)
    return result


def assemble(
    model: VAEGAN,
    objective: config.Objective,
    optimizers: config.Optimizers,
    execution: Execution,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda learner: learner,
    agree: Agree = alone,
    parts: int = 1,
    recompute: bool = False,
) -> Engine:
    """The engine of a schedule over a model that is on its device; the model's memory format may change.

    wrap, agree: data parallelism, see `vaegan.objective.players` and `vaegan.step.Agree`. recompute: see
    `vaegan.networks.ports.Network`.
    """
    if execution.channels_last:
        model.to(memory_format=torch.channels_last)
    for network in (model.encoder, model.decoder, model.discriminator):
        network.recompute = recompute

    def wrapped(learner: Learner) -> nn.Module:
        if execution.compiled:
            learner.compile(dynamic=False)
        return wrap(learner)

    everyone = players(model, objective, optimizers, wrapped, execution.dtype)
    return Engine(turns(objective), everyone, execution, agree, parts)
