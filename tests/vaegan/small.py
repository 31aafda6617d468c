"""Small games that the tests share: a model, its players, a batch and noise. B batch, Z latent."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vaegan import VAEGAN, build, config
from vaegan.objective import players
from vaegan.step import Batch, Noise, Player

MLP = config.Networks(family="mlp", latent=3, width=8, norm="none")
CONV = config.Networks(family="conv", latent=3, width=8)
SHAPE = (2, 3, 4)
"""No two sides alike, so that mixed-up axes show."""

PLAIN = config.Objective(likelihood=config.Likelihood(std=0.5), beta=0.7, lambda_=0.3)
JOINT = config.Objective(schedule="joint", likelihood=config.Likelihood(std=0.5), beta=0.7, lambda_=0.3)
LARSEN = config.Objective(
    schedule="joint", reconstruction="features", judge_reconstructions=True, beta=0.7, lambda_=0.3
)
OPTIMIZERS = config.Optimizers(
    autoencoder=config.Optimizer(lr=1e-3),
    discriminator=config.Optimizer(lr=2e-3),
    generator=config.Optimizer(lr=3e-3),
)


class Game(NamedTuple):
    model: VAEGAN
    players: dict[str, Player]
    batch: Batch
    noise: Noise


def game(
    objective: config.Objective,
    *,
    networks: config.Networks = MLP,
    shape: tuple[int, int, int] = SHAPE,
    optimizers: config.Optimizers = OPTIMIZERS,
    size: int = 6,
) -> Game:
    """The same game every time it is called."""
    torch.manual_seed(7)
    model = build(networks, objective.likelihood, shape)
    batch, noise = drawn(size, shape, networks.latent, objective)
    return Game(model, players(model, objective, optimizers), batch, noise)


def drawn(
    size: int, shape: tuple[int, ...], latent: int, objective: config.Objective | None = None
) -> tuple[Batch, Noise]:
    batch, noise = Batch(torch.rand(size, *shape)), Noise(torch.randn(size, latent), torch.randn(size, latent))
    if objective is not None and objective.penalty:
        noise = noise._replace(directions=torch.randn(size, *shape))
    return batch, noise


def with_sgd(everyone: dict[str, Player], lr: float) -> dict[str, Player]:
    """The same players with gradient descent for an optimiser, so that a step is lr times the gradient."""
    return {name: player._replace(optimizer=sgd(player.network, lr)) for name, player in everyone.items()}


def sgd(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    made = torch.optim.SGD(network.parameters(), lr=lr)
    made.param_groups[0]["initial_lr"] = lr
    return made


def weights(**named: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in named.items()}


def copies(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.detach().clone() for tensor in tensors]


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def grads(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]


def same(left: Iterable[Tensor | None], right: Iterable[Tensor | None]) -> bool:
    """Bit for bit."""
    return all(
        a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(list(left), list(right), strict=True)
    )


class Summed(Protocol):
    """What several see in parts, and add up."""

    def tensors(self) -> tuple[Tensor, ...]: ...


def add_up(first: Summed, *others: Summed) -> None:
    """Leave in the first what all of them have seen, as ranks do."""
    for other in others:
        for own, part in zip(first.tensors(), other.tensors(), strict=True):
            own += part
