"""What must survive a killed run, named once: save and restore can't drift apart."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vaegan import VAEGAN
from vaegan.average import MovingAverage
from vaegan.step import Player

Tensors = dict[str, Tensor]


@dataclass(kw_only=True)
class Progress:
    """The part of a run's state that is no tensor. Noise and order are functions of seed and images seen."""

    images_seen: int = 0
    seconds: float = 0.0
    """Spent in training, evaluations apart."""
    order_digest: str = ""
    """A chain of sha256 over the rows of every batch: equal digests saw the same images in the same order."""
    best: float | None = None
    """Of the metric that checkpoints are ranked by."""
    evaluations_since_best: int = 0
    bad_since: dict[str, int] = field(default_factory=dict)
    """Sign of trouble -> images seen at the first of its bad readings in a row."""
    standing: list[str] = field(default_factory=list)
    """Signs that have been bad for long enough to show, and still are."""
    flags: list[str] = field(default_factory=list)
    """Signs that have shown since the last checkpoint."""
    held_until: int = 0
    """Images seen until which the discriminator rests; 0 where it has not, since the run was set back."""
    held_since: int | None = None
    """Images seen at the onset of what it last rested for; None once that has stayed away, or the run was set back."""
    set_back: int = 0
    """How often the run was, to weights of an earlier checkpoint. Images seen count on."""
    rates: dict[str, float] = field(default_factory=dict)
    """Player -> what its learning rate is multiplied by ever since."""
    penalty: float = 1.0
    """What the weight of the discriminator's penalty is multiplied by since it last rested."""


class Snapshot(NamedTuple):
    """A state as it was at one moment, in memory of its own: it can be written while training goes on."""

    images_seen: int
    tensors: dict[str, Tensors]
    """Name of a file -> its tensors, on the CPU."""
    facts: dict[str, object]
    """The rest, as JSON."""


@dataclass(frozen=True)
class TrainState:
    """Everything a checkpoint holds."""

    model: VAEGAN
    average: MovingAverage
    """Of the autoencoder."""
    players: Mapping[str, Player]
    progress: Progress

    def tensors(self) -> dict[str, Tensors]:
        """Name of a file -> its tensors."""
        optimizers = {f"optimizer-{name}": _flat(player.optimizer) for name, player in self.players.items()}
        return {"model": self.model.state_dict(), "average": self.average.module.state_dict()} | optimizers

    def facts(self) -> dict[str, object]:
        """The rest, as JSON."""
        return asdict(self.progress) | {"averaged": self.average.n_averaged}

    def snapshot(self) -> Snapshot:
        """A copy of all of it."""
        copied = {
            name: {
                key: value.to("cpu", copy=True, memory_format=torch.contiguous_format) for key, value in tensors.items()
            }
            for name, tensors in self.tensors().items()
        }
        return Snapshot(self.progress.images_seen, copied, self.facts())

    def restore(self, tensors: Mapping[str, Tensors], facts: Mapping[str, object]) -> None:
        """Take up where `tensors` and `facts` were taken."""
        self.set_back(tensors, facts)
        for name in asdict(self.progress):
            setattr(self.progress, name, facts[name])

    def set_back(self, tensors: Mapping[str, Tensors], facts: Mapping[str, object]) -> None:
        """Take all from there but the progress."""
        self.model.load_state_dict(tensors["model"])
        self.average.module.load_state_dict(tensors["average"])
        for name, player in self.players.items():
            _restore(player.optimizer, tensors[f"optimizer-{name}"])
        self.average.n_averaged = int(str(facts["averaged"]))


def _flat(optimizer: torch.optim.Optimizer) -> Tensors:
    """`parameter.key` -> tensor. Settings of groups are not state: they come from the run's settings."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:  # fused optimisers take for granted that both lie in the same order
                values[key] = torch.empty_like(parameter).copy_(value)
