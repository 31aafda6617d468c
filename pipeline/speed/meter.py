"""The accounting of a run while it goes on: figures of every stretch between two points of its curves."""

import time

import torch

from pipeline.speed.ceiling import Ceilings
from pipeline.speed.communication import Communication
from pipeline.speed.energy import energy_of
from pipeline.speed.figures import Stretch, speed
from pipeline.speed.flops import Cost
from pipeline.speed.phases import Phases


class Meter:
    """Measures one rank of several that do equal work. `phases` is the watch that its steps are passed."""

    def __init__(self, device: torch.device, communication: Communication) -> None:
        self.phases = Phases(device)
        self._communication = communication
        self._energy = energy_of(device)
        self._since = time.monotonic()

    def begin(self) -> None:
        """A stretch starts here; what was before is forgotten."""
        self.read(0, 0)

    def read(self, steps: int, images: int) -> Stretch:
        """The stretch since it began, of so many steps and images of all ranks; the device must be done with them.

        The next one begins.
        """
        since, self._since = self._since, time.monotonic()
        sent, joules = self._communication.read(), self._energy.read()
        return Stretch(steps, images, self._since - since, self.phases.read(), sent, joules)


class Account:
    """What rank 0 makes of a stretch: figures beside what its device could do."""

    def __init__(self, ceilings: Ceilings, precision: torch.dtype | None, ranks: int, flop: float) -> None:
        """flop: floating point operations an image."""
        self._ceilings = ceilings
        self._precision = precision
        self._ranks = ranks
        self._per_image = Cost(flop)

    def figures(self, stretch: Stretch) -> dict[str, float]:
        """`speed/<figure>` -> value, see `pipeline.speed.figures.speed`."""
        return speed(stretch, self._per_image, self._ceilings, self._precision, self._ranks)
