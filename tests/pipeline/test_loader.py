"""From positions to batches on a device. B batch."""

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Ids
from pipeline.data.loader import Chance, Loader, shown

IMAGES = torch.randint(256, (40, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


class Rows:
    """Rows in order, 8 at a time."""

    def at(self, position: int) -> tuple[Ids, Tensor]:
        ids = np.arange(position, position + 8) % len(IMAGES)
        return ids, IMAGES[torch.from_numpy(ids)]

    def move_to(self, device: torch.device, most_bytes: int) -> None:
        raise AssertionError("there is no device to move to")


def loader(*, flip: bool) -> Loader:
    return Loader(Rows(), Chance(3, 8, 2, slice(0, 8), flip=flip, slopes=(1, 2, 2)), CPU)


def test_pixels_are_shown_in_the_unit_interval() -> None:
    assert torch.equal(shown(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))


def test_mirrored_images_are_mirrored_left_to_right_and_the_others_are_not() -> None:
    mirrored = torch.tensor([True, False])
    found = shown(IMAGES[:2], mirrored)
    assert torch.equal(found[0], shown(IMAGES[0]).flip(-1))
    assert torch.equal(found[1], shown(IMAGES[1]))


def test_a_batch_is_a_function_of_its_position_prepared_or_not() -> None:
    one, other = loader(flip=True), loader(flip=True)
    for position in (0, 8, 16):
        other.prepare(position)
        for ours, theirs in zip(one.at(position)[1:], other.at(position)[1:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_half_of_the_images_are_mirrored_other_ones_every_time() -> None:
    plain, flipped = loader(flip=False), loader(flip=True)
    pattern = []
    for position in range(0, 800, 8):
        straight, mirrored = plain.at(position).batch.images, flipped.at(position).batch.images
        flips = [bool(torch.equal(b, a.flip(-1))) for a, b in zip(straight, mirrored, strict=True)]
        kept = [bool(torch.equal(b, a)) for a, b in zip(straight, mirrored, strict=True)]
        assert all(a != b for a, b in zip(flips, kept, strict=True))
        pattern.append(tuple(flips))
    assert 330 < sum(map(sum, pattern)) < 470
    assert len(set(pattern)) > 50


def test_mirroring_leaves_the_noise_alone() -> None:
    for ours, theirs in zip(loader(flip=True).at(64).noise, loader(flip=False).at(64).noise, strict=True):
        assert torch.equal(ours, theirs)
