"""What models are measured against. N held-out images, M training images, K factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.batches import first_columns, first_images
from pipeline.data.manifest import Manifest
from pipeline.errors import Mistake
from pipeline.settings import Evaluation


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images of a data set that no model has been trained on, and some that all have."""

    digest: str
    """Of the data set."""
    split: str
    images: Tensor
    """(N, C, H, W) uint8."""
    training: Tensor
    """(M, C, H, W) uint8, at most as many as there will be samples: a perfect model draws such as these."""
    factors_NK: Tensor
    """What made each held-out image, by number, int64; K is 0 where the data set doesn't say."""


def read(data: str, manifest: Manifest, settings: Evaluation) -> HeldOut:
    """What the settings of an evaluation ask for, of a data set. Raises Mistake."""
    images = first_images(data, manifest, settings.split, settings.images)
    others = settings.samples if "train" in manifest.splits and settings.split != "train" else 0
    return HeldOut(
        digest=manifest.digest,
        split=settings.split,
        images=images,
        training=first_images(data, manifest, "train", others) if others else images[:0],
        factors_NK=_factors(data, manifest, settings),
    )


def _factors(data: str, manifest: Manifest, settings: Evaluation) -> Tensor:
    """Columns of whole numbers apart from the label, where there are several, each value of them several times."""
    columns = []
    for name, kind in manifest.columns.items():
        if kind.startswith(("int", "uint")) and name != "label":
            try:
                factor_N = first_columns(data, manifest, settings.split, [name], settings.images)[:, 0]
            except Mistake:  # it has gaps; damage would have shown with the images
                continue
            if 2 <= len(factor_N.unique()) <= len(factor_N) // 8:
                columns.append(factor_N)
    return torch.stack(columns, 1) if len(columns) >= 2 else torch.empty(0, 0, dtype=torch.int64)
