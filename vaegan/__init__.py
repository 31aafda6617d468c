"""VAE-GANs in plain torch: networks, objective, and the alternating step. No Ray, no MLflow, no files.

Names load on first use, so that `vaegan.config` can be read by programs that must start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaegan.model import VAEGAN as VAEGAN
    from vaegan.model import Autoencoder as Autoencoder
    from vaegan.model import build as build
    from vaegan.networks.mlp import Decoder as Decoder
    from vaegan.networks.mlp import Discriminator as Discriminator
    from vaegan.networks.mlp import Encoder as Encoder

_HOMES = {
    "VAEGAN": "vaegan.model",
    "Autoencoder": "vaegan.model",
    "build": "vaegan.model",
    "Encoder": "vaegan.networks.mlp",
    "Decoder": "vaegan.networks.mlp",
    "Discriminator": "vaegan.networks.mlp",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vaegan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
