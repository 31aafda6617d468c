"""The moving average of the weights: what is evaluated, registered and sampled from."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, half_life: int, batch: int) -> AveragedModel:
    """An exponential average of a network's weights, updated once a step of `batch` images.

    half_life: images after which a weight's share has halved; 0 keeps the newest weights alone.
    """
    decay = 0.5 ** (batch / half_life) if half_life else 0.0
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
