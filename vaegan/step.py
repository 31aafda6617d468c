"""The alternating update: players take turns, each descends its own loss while its opponents are frozen.

B is the rank's share of the batch, Z latent. Parallelism is wrapped outside: a player's `learner` may be its network
inside DistributedDataParallel, and `agree` a mean over ranks; nothing here knows. Nothing here waits for a device
either: weights and rates come in as tensors, decisions go out as masks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

Terms = dict[str, Tensor]
"""Name -> the term of each image, unweighted, in nats, (B,). The total and the log are made of the same dict; what is
to be told and not descended, such as logits, is a term cut off from its graph."""

Weights = Mapping[str, Tensor]
"""Name of a term -> its weight, a scalar; a term without one counts once. Name of a player -> what its learning rate is
multiplied by; a player without one keeps its rate."""

Agree = Callable[[Tensor], Tensor]
"""Mean of a tensor over the ranks. Whatever is not linear in the batch passes its inputs through this, then decides."""


def alone(value: Tensor) -> Tensor:
    """The agreement of a single rank."""
    return value


Watch = Callable[[str], AbstractContextManager[object]]
"""Entered around each `forward`, `backward`, `update` and `wait` for other ranks, by whoever measures a step."""


def unwatched(phase: str) -> AbstractContextManager[object]:
    """Nobody measures."""
    return nullcontext()


class Batch(NamedTuple):
    """One rank's share of a batch."""

    images: Tensor
    """(B, C, H, W) in [0, 1]."""


class Noise(NamedTuple):
    """One rank's share of the noise of a step."""

    posterior_BZ: Tensor
    prior_BZ: Tensor
    directions: Tensor | None = None
    """In the space of images, (B, C, H, W): slopes of D are measured along them; None where none is measured."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Noise":
        """All that was drawn, changed."""
        directions = None if self.directions is None else change(self.directions)
        return Noise(change(self.posterior_BZ), change(self.prior_BZ), directions)


class Share(NamedTuple):
    """What one forward takes: the rank's share, or a part of it where gradients are accumulated."""

    batch: Batch
    noise: Noise

    def split(self, parts: int) -> "list[Share]":
        """Parts of equal size, in order; their number divides B."""
        size = len(self.batch.images) // parts
        images = self.batch.images.split(size)
        noises = [[None] * parts if drawn is None else drawn.split(size) for drawn in self.noise]
        return [Share(Batch(x), Noise(*noise)) for x, *noise in zip(images, *noises, strict=True)]


class Player(NamedTuple):
    """Who learns in a turn."""

    network: nn.Module
    """The bare weights: what opponents call."""
    learner: nn.Module
    """The same weights, perhaps inside DDP: only its own turn calls it, once, through its forward."""
    optimizer: torch.optim.Optimizer
    parts: Mapping[str, nn.Module]
    """The player's networks by name, for gates that rest one of them."""


Players = Mapping[str, Player]


class Made(Protocol):
    """Images that a player made, and what it found on the way to them."""

    @property
    def shown(self) -> Tensor:
        """What D judges, (K * B, ...)."""
        ...


class Draft(NamedTuple):
    """Images that turns of a step have in common. Their maker's weights stand still until its own turn ends, so one
    pass serves those who judge the images before it, and then the maker, who learns through it."""

    maker: str
    make: Callable[[Players, Batch, Noise], Made]


Rests = Mapping[str, Tensor]
"""Name of a network -> whether it rests, a scalar of bool where the losses are: nothing waits for the answer."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One player's move."""

    name: str
    player: str
    opponents: tuple[str, ...]
    """Players whose weights this turn's loss passes through and must not touch."""
    draft: Draft
    terms: Callable[[Players, Batch, Noise, Callable[[], Made]], Terms]
    """The last argument gives what the draft made, to those who need it."""
    pace: str | None = None
    """The weight that scales this turn's learning rate; the terms then count once each."""
    gate: Callable[[Terms, Agree], Rests] | None = None
    """Reads this turn's terms and says who rests for the remainder of the step."""


def step(
    turns: Sequence[Turn],
    players: Players,
    batch: Batch,
    noise: Noise,
    weights: Weights,
    agree: Agree = alone,
    *,
    parts: int = 1,
    watch: Watch = unwatched,
) -> Terms:
    """Every turn once. Returns every term as `turn/term`, (B,), detached, and `turn/gradient_norm`, a scalar.

    parts: over how many forwards and backwards a turn's gradient is accumulated, a divisor of B. The memory is that of
    one part; a draft is then made again for each turn, since keeping it would keep the activations of the whole.
    """
    logged: Terms = {}
    rests: Rests = {}
    shares = Share(batch, noise).split(parts)
    drafts = {turn.draft for turn in turns} if parts == 1 else set()
    with watch("forward"):
        kept = {draft: draft.make(players, batch, noise) for draft in drafts}
    for turn in turns:
        player = players[turn.player]
        player.optimizer.zero_grad(set_to_none=True)
        found = []
        for number, share in enumerate(shares, start=1):
            make = partial(kept.__getitem__, turn.draft) if kept else partial(_made, turn, players, share)
            with _averaging(player.learner, number == parts):
                found.append(_descend(turn, players, share, make, weights, parts, watch))
        terms = found[0] if parts == 1 else {name: torch.cat([part[name] for part in found]) for name in found[0]}
        if turn.gate is not None:
            with watch("wait"):
                rests = turn.gate(terms, agree)
        logged |= {f"{turn.name}/{name}": term for name, term in terms.items()}
        with watch("update"):
            logged[f"{turn.name}/gradient_norm"] = gradient_norm(player.network)
            move(player, rests, _pace(turn, weights))
    return logged


def total(terms: Terms, weights: Weights) -> Tensor:
    """One loss: the mean over images of the weighted sum of terms."""
    summed = sum(term * weights[name] if name in weights else term for name, term in terms.items())
    assert isinstance(summed, Tensor)
    return summed.mean()


def move(player: Player, rests: Rests | None = None, pace: Tensor | None = None) -> None:
    """One step of the optimiser along the gradients that are there, its learning rate times `pace`.

    Who rests has taken part in the backward, so that every rank reduces the same gradients, and keeps its weights and
    its optimiser's state.
    """
    if pace is not None:
        _set_rate(player.optimizer, pace)
    resting = [(player.parts[name], mask) for name, mask in (rests or {}).items() if name in player.parts]
    before = [_copied(_movable(part, player.optimizer)) for part, _ in resting]
    player.optimizer.step()
    for (part, mask), old in zip(resting, before, strict=True):
        _take_back(_movable(part, player.optimizer), old, mask)


def gradient_norm(network: nn.Module) -> Tensor:
    """Of the gradients that are there, all of them as one vector: a scalar."""
    return get_total_norm([weight.grad for weight in network.parameters() if weight.grad is not None])


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """No gradient reaches these weights; gradients still pass through the networks to their inputs."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _descend(
    turn: Turn,
    players: Players,
    share: Share,
    make: Callable[[], Made],
    weights: Weights,
    parts: int,
    watch: Watch,
) -> Terms:
    """One loss, one backward. Returns the terms, detached."""
    with frozen(*(players[name].network for name in turn.opponents)):
        with watch("forward"):
            terms = turn.terms(players, share.batch, share.noise, make)
            loss = total(terms, weights if turn.pace is None else {}) / parts
        with watch("backward"):
            loss.backward()
    return {name: term.detach() for name, term in terms.items()}


def _made(turn: Turn, players: Players, share: Share) -> Made:
    """A draft for one turn alone: only its maker learns through it."""
    with torch.set_grad_enabled(turn.player == turn.draft.maker):
        return turn.draft.make(players, *share)


def _averaging(learner: nn.Module, now: bool) -> AbstractContextManager[object]:
    """DDP sends gradients in the last backward of a turn alone."""
    wait = getattr(learner, "no_sync", None)
    return nullcontext() if now or wait is None else wait()


def _pace(turn: Turn, weights: Weights) -> Tensor | None:
    """What scales the learning rate in this turn: its player's weight, and the turn's own."""
    pace = weights.get(turn.player)
    if turn.pace is None:
        return pace
    return weights[turn.pace] if pace is None else weights[turn.pace] * pace


def _set_rate(optimizer: torch.optim.Optimizer, pace: Tensor) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            # in place: a captured graph reads it there
            group["lr"].copy_(group["initial_lr"] * pace, non_blocking=True)
        else:
            group["lr"] = group["initial_lr"] * float(pace)


State = dict[tuple[int, str], Tensor]


def _movable(part: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Every tensor that a step of the optimiser changes for a part, by parameter and name."""
    found: State = {}
    for number, parameter in enumerate(part.parameters()):
        found[number, "weight"] = parameter.detach()
        found |= {(number, str(name)): value for name, value in optimizer.state.get(parameter, {}).items()}
    return found


def _copied(state: State) -> State:
    return {key: value.clone() for key, value in state.items()}


def _take_back(now: State, before: State, mask: Tensor) -> None:
    """Where the mask holds, the old values; what did not exist before had been zero."""
    with torch.no_grad():
        for key, value in now.items():
            old = before.get(key)
            value.copy_(torch.where(mask.to(value.device), 0.0 if old is None else old, value))
