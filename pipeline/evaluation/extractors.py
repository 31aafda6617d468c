"""What turns images into features, so that sets of images can be compared. B batch, F features, K classified columns.

Every extractor names its weights: figures are comparable only where these are the same.
"""

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.batches import first_images
from pipeline.data.manifest import Manifest
from pipeline.errors import Mistake
from pipeline.evaluation import classifier
from pipeline.evaluation.classifier import Card
from pipeline.settings import EXTRACTORS
from vaegan.metrics import fd_pca


class Extractor(Protocol):
    """Images in, features out; the same features for an image whatever it is batched with, to float32's last bits."""

    @property
    def name(self) -> str:
        """What its figures are called by: `fd_<name>`."""

    @property
    def weights(self) -> str | None:
        """Their sha256; None where the protocol's data and images determine it."""

    @property
    def resize(self) -> str:
        """What is done to the images first; `none` where nothing is."""

    @property
    def features(self) -> int:
        """F."""

    @property
    def heads(self) -> tuple[int, ...]:
        """How many classes it knows in each column; empty where it knows none."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images (B, C, H, W) in [0, 1], (B, F) float32."""

    def classes(self, features_BF: Tensor) -> Tensor:
        """The likeliest class in each column, (B, K)."""


def open_extractor(
    name: str,
    data: str,
    manifest: Manifest,
    split: str = "test",
    inception: str | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor of a name, for images like those of a data set. Nothing is downloaded. Raises Mistake.

    split: whose first images pca64 is fitted on. inception: a file of weights, where it isn't in torch's hub folder.
    """
    match name:
        case "pca64":
            return Pca(first_images(data, manifest, split, fd_pca.FITTED_ON), device)
        case "classifier":
            return Classifier(*classifier.kept(data, manifest), device)
        case "inception":
            return Inception(inception_weights(inception), device)
    raise Mistake(f"extractor {name!r} is not known; expected one of {', '.join(EXTRACTORS)}")


class Pca:
    """The 64 leading principal components of held-out images: no weights to have, blind to fine texture."""

    name, weights, resize = "pca64", None, "none"
    heads: tuple[int, ...] = ()

    def __init__(self, held_out: Tensor, device: torch.device | str = "cpu") -> None:
        """held_out: (N, C, H, W) uint8. Raises Mistake where the images are all the same."""
        try:
            self._pca = fd_pca.fit(held_out[: fd_pca.FITTED_ON].to(device).float() / 255)
        except ValueError as error:
            raise Mistake(f"extractor pca64: {error}") from None
        self.features = self._pca.basis_XF.shape[1]

    def __call__(self, images: Tensor) -> Tensor:
        return self._pca.project(images).float()

    def classes(self, features_BF: Tensor) -> Tensor:
        return features_BF.new_empty(len(features_BF), 0)


class Classifier:
    """The means over pixels that the user's own classifier decides by (`vaegan features train`)."""

    name, resize, features = "classifier", "none", classifier.FEATURES

    def __init__(self, network: classifier.Classifier, card: Card, device: torch.device | str = "cpu") -> None:
        self._network = network.to(device)
        self.weights: str | None = card.sha256
        self.heads = card.classes

    def __call__(self, images: Tensor) -> Tensor:
        features_BF: Tensor = self._network(images)
        return features_BF

    def classes(self, features_BF: Tensor) -> Tensor:
        return self._network.classes(features_BF)


INCEPTION_SHA256 = "6726825d"
"""How the sha256 of the weights begins that every published FID rests on, as they were ported to PyTorch."""
INCEPTION_FILES = tuple(f"{whose}inception-2015-12-05-{INCEPTION_SHA256}.pth" for whose in ("weights-", "pt_"))
"""What torch-fidelity, with torchmetrics, and pytorch-fid call the file in torch's hub folder."""


class Inception:
    """The standard Inception v3 of FID: bytes in, the last pooled layer out; torch-fidelity's port (Obukhov 2020)."""

    name, resize, features = "inception", "299 px, bilinear as in TensorFlow 1", 2048
    heads: tuple[int, ...] = ()

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        """Raises Mistake where the file holds other weights: only the standard ones may be called FID."""
        with weights.open("rb") as file:
            self.weights: str | None = hashlib.file_digest(file, "sha256").hexdigest()
        if not self.weights.startswith(INCEPTION_SHA256):
            raise Mistake(
                f"evaluation.inception: {weights} has sha256 {self.weights[:8]}..., the standard Inception "
                f"{INCEPTION_SHA256}...; fetch {INCEPTION_FILES[0]} again"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError:
            raise Mistake("extractor inception needs torch-fidelity: pip install torch-fidelity") from None
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
        self._network: torch.nn.Module = network.eval().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().clamp(0, 255).byte()
        features_BF: Tensor = self._network(pixels.expand(-1, 3, -1, -1))[0]
        return features_BF.float()

    def classes(self, features_BF: Tensor) -> Tensor:
        return features_BF.new_empty(len(features_BF), 0)


def inception_weights(path: str | None = None) -> Path:
    """Where Inception's weights are on this machine. Raises Mistake that says where they were looked for."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(path)] if path else [hub / name for name in INCEPTION_FILES]
    for place in places:
        if place.is_file():
            return place
    raise Mistake(
        f"extractor inception: no weights at {' or '.join(map(str, places))}, and nothing is downloaded; put "
        f"{INCEPTION_FILES[0]} there, or name it with evaluation.inception. "
        "The extractors pca64 and classifier run without"
    )
