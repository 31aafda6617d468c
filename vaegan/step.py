"""The alternating update: players take turns, each descends its own loss while its opponents are frozen.

B is the rank's share of the batch, Z latent. Parallelism is wrapped outside: a player's `learner` may be its network
inside DistributedDataParallel, and `agree` a mean over ranks; nothing here knows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

Terms = dict[str, Tensor]
"""Name -> the term of each image, unweighted, in nats, (B,). The total and the log are made of the same dict."""

Weights = Mapping[str, Tensor]
"""Name of a term -> its weight, a scalar; a term without one counts once."""

Agree = Callable[[Tensor], Tensor]
"""Mean of a tensor over the ranks. Whatever is not linear in the batch passes its inputs through this, then decides."""


def alone(value: Tensor) -> Tensor:
    """The agreement of a single rank."""
    return value


class Batch(NamedTuple):
    """One rank's share of a batch."""

    images: Tensor
    """(B, C, H, W) in [0, 1]."""


class Noise(NamedTuple):
    """One rank's share of the noise of a step."""

    posterior_BZ: Tensor
    prior_BZ: Tensor


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


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One player's move."""

    name: str
    player: str
    opponents: tuple[str, ...]
    """Players whose weights this turn's loss passes through and must not touch."""
    terms: Callable[[Players, Batch, Noise], Terms]
    pace: str | None = None
    """The weight that scales this turn's learning rate; the terms then count once each."""
    gate: Callable[[Terms, Agree], frozenset[str]] | None = None
    """Reads this turn's terms and names the networks that rest for the remainder of the step."""


class Lent(nn.Module):
    """A network whose forward is one of its other methods: DDP averages the gradients of a forward alone."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, *inputs: Tensor) -> object:
        return getattr(self.network, self.method)(*inputs)


def step(
    turns: tuple[Turn, ...],
    players: Players,
    batch: Batch,
    noise: Noise,
    weights: Weights,
    agree: Agree = alone,
) -> Terms:
    """Every turn once. Returns every term as `turn/term`, (B,), detached."""
    logged: Terms = {}
    resting: frozenset[str] = frozenset()
    for turn in turns:
        player = players[turn.player]
        with frozen(*(players[name].network for name in turn.opponents)):
            terms = turn.terms(players, batch, noise)
            if turn.gate is not None:
                resting = turn.gate({name: term.detach() for name, term in terms.items()}, agree)
            if turn.pace is None:
                descend(player, terms, weights, resting)
            else:
                descend(player, terms, {}, resting, pace=float(weights[turn.pace]))
        logged |= {f"{turn.name}/{name}": term.detach() for name, term in terms.items()}
    return logged


def descend(
    player: Player, terms: Terms, weights: Weights, resting: frozenset[str] = frozenset(), pace: float = 1.0
) -> None:
    """One loss, one backward, one step of the optimiser; its learning rate times `pace`.

    Resting networks take part in the backward, so that every rank reduces the same gradients, and then keep their
    weights and their optimiser's state: optimisers pass over a parameter without a gradient.
    """
    player.optimizer.zero_grad(set_to_none=True)
    total = sum(term * weights[name] if name in weights else term for name, term in terms.items())
    assert isinstance(total, Tensor)
    total.mean().backward()
    for name in resting & player.parts.keys():
        player.parts[name].zero_grad(set_to_none=True)
    for group in player.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * pace
    player.optimizer.step()


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
