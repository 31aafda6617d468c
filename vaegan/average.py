"""The moving average of the weights: what is evaluated, registered and sampled from."""

from copy import deepcopy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """An exponential average of a network's weights.

    torch's AveragedModel, but for two things that every step pays for: it counts on the host, so that no step waits for
    a GPU, and it looks the weights up once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """decay: of the average in one update, in [0, 1)."""
        self.module = deepcopy(network).requires_grad_(False)
        self.n_averaged = 0
        self._network = list(network.parameters())
        self._module = list(self.module.parameters())
        self._copy, self._blend = get_ema_multi_avg_fn(0.0), get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take in the network's weights as they are now; the first ones as they are."""
        blend = self._blend if self.n_averaged else self._copy
        blend(self._module, self._network, self.n_averaged)
        self.n_averaged += 1


def moving_average(network: nn.Module, half_life: int, batch: int) -> MovingAverage:
    """The average of a network that takes steps of `batch` images.

    half_life: images after which a weight's share has halved; 0 keeps the newest weights alone.
    """
    return MovingAverage(network, 0.5 ** (batch / half_life) if half_life else 0.0)
