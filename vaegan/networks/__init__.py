"""The networks, by family."""

from collections.abc import Callable

from vaegan import config
from vaegan.networks import conv, mlp
from vaegan.networks.ports import Networks, Shape

FAMILIES: dict[str, Callable[[config.Networks, Shape, int], Networks]] = {"mlp": mlp.build, "conv": conv.build}


def build(settings: config.Networks, shape: Shape, maps: int) -> Networks:
    """Networks for images of `shape`, whose decoder emits `maps` numbers a pixel and channel.

    Raises ValueError where the family can't take that shape. Weights come from torch's global generator.
    """
    return FAMILIES[settings.family](settings, shape, maps)
