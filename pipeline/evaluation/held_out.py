"""What models are measured against. N held-out images, M training images, P images with factors, K factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.batches import first_columns, first_images
from pipeline.data.manifest import LABEL, Manifest
from pipeline.errors import Mistake
from pipeline.settings import Evaluation

FACTOR_IMAGES = 2_000
"""Most images that disentanglement is measured on."""
LEAST = 8
"""Of those that a factor's rarest value has: half of them train what the other half scores."""


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
    factors_PK: Tensor
    """What made each of the first held-out images, by number, int64; K is 0 where the data set doesn't say."""


def read(data: str, manifest: Manifest, settings: Evaluation) -> HeldOut:
    """What the settings of an evaluation ask for, of a data set. Raises Mistake."""
    images = first_images(data, manifest, settings.split, settings.images)
    others = settings.samples if "train" in manifest.splits and settings.split != "train" else 0
    return HeldOut(
        digest=manifest.digest,
        split=settings.split,
        images=images,
        training=first_images(data, manifest, "train", others) if others else images[:0],
        factors_PK=_factors(data, manifest, settings),
    )


def _factors(data: str, manifest: Manifest, settings: Evaluation) -> Tensor:
    """Columns of whole numbers apart from the label, where there are several, each value of them several times."""
    columns, count = [], min(settings.images, FACTOR_IMAGES)
    for name in manifest.whole:
        try:
            factor_P = first_columns(data, manifest, settings.split, [name], count)[:, 0]
        except Mistake:  # it has gaps; damage would have shown with the images
            continue
        counts = factor_P.unique(return_counts=True)[1]
        if name != LABEL and len(counts) > 1 and counts.min() >= LEAST:
            columns.append(factor_P)
    return torch.stack(columns, 1) if len(columns) >= 2 else torch.empty(0, 0, dtype=torch.int64)
