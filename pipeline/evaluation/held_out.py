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
    factors: tuple[str, ...]
    """Names of K columns of whole numbers that say what made an image; none where there are not two or more."""
    factor_rows_P: Tensor
    """The held-out images whose factors are looked at, by number, in order."""
    factors_PK: Tensor
    """Their factors, int64."""


def read(data: str, manifest: Manifest, settings: Evaluation) -> HeldOut:
    """What the settings of an evaluation ask for, of a data set. Raises Mistake."""
    images = first_images(data, manifest, settings.split, settings.images)
    names, rows_P, factors_PK = _factors(data, manifest, settings.split, len(images))
    others = settings.samples if "train" in manifest.splits and settings.split != "train" else 0
    return HeldOut(
        digest=manifest.digest,
        split=settings.split,
        images=images,
        training=first_images(data, manifest, "train", others) if others else images[:0],
        factors=names,
        factor_rows_P=rows_P,
        factors_PK=factors_PK,
    )


def _factors(data: str, manifest: Manifest, split: str, images: int) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Columns of whole numbers apart from the label, where there are several, each value of them several times."""
    rows_P = torch.randperm(images, generator=torch.Generator().manual_seed(0))[:FACTOR_IMAGES].sort().values
    found = {}  # rows by chance: in a grid of all combinations the first ones have factors that never change
    for name in manifest.whole:
        try:
            factor_P = first_columns(data, manifest, split, [name], images)[rows_P, 0]
        except Mistake:  # it has gaps; damage would have shown with the images
            continue
        counts = factor_P.unique(return_counts=True)[1]
        if name != LABEL and len(counts) > 1 and counts.min() >= LEAST:
            found[name] = factor_P
    if len(found) < 2:
        return (), rows_P[:0], torch.empty(0, 0, dtype=torch.int64)
    return tuple(found), rows_P, torch.stack(list(found.values()), 1)
