"""The moving average of the weights: what is evaluated, registered and sampled from."""

from copy import deepcopy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

YOUNG = 9
"""While the average is young its decay in update n, counted from 0, is at most n / (n + YOUNG): it reaches back over a
tenth of the training, not to weights that had learnt nothing. So does TensorFlow's ExponentialMovingAverage."""


class MovingAverage:
    """An exponential average of a network's weights.

    torch's AveragedModel, but for two things that every step pays for: it counts on the host, so that no step waits for
    a GPU, and it looks the weights up once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """decay: of the average in one update, in [0, 1), once it is no longer young."""
        self.module = deepcopy(network).requires_grad_(False)
        self.n_averaged = 0
        self._network = list(network.parameters())
        self._module = list(self.module.parameters())
        self._decay = decay

    def update(self) -> None:
        """Take in the network's weights as they are now; the first ones as they are."""
        n = self.n_averaged
        get_ema_multi_avg_fn(min(self._decay, n / (n + YOUNG)))(self._module, self._network, n)
        self.n_averaged += 1


def moving_average(network: nn.Module, half_life: int, batch: int) -> MovingAverage:
    """The average of a network that takes steps of `batch` images.

    half_life: images after which a weight's share has halved; 0 keeps the newest weights alone.
    """
    return MovingAverage(network, 0.5 ** (batch / half_life) if half_life else 0.0)
