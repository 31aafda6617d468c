"""From positions in the stream to batches on a device, the next one on its way while the device computes.

What a step draws at random is a pure function of (seed, position) too. It is drawn for the global batch, then each rank
takes its share, so that the number of ranks does not matter. B a rank's share, Z latent.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.chance import generator
from pipeline.data.batches import Feed, Ids, Images, Order, shards_of
from pipeline.data.manifest import Manifest
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from vaegan.networks.ports import Shape
from vaegan.step import Batch, Noise


class Stream(Protocol):
    """Where a loader's images come from: `pipeline.data.batches.Feed` says what its methods do."""

    def at(self, position: int) -> tuple[Ids, Tensor]: ...

    def move_to(self, device: torch.device, most_bytes: int) -> None: ...


def feed_of(settings: Settings, manifest: Manifest, ranks: Ranks) -> Feed:
    """The training images of a run, a rank's share of them. Raises Mistake."""
    data = settings.data
    images = Images(data.path, manifest, "train", data.window, data.budget_mb)
    order = Order([shard.rows for shard in shards_of(manifest, "train")], settings.seed, data.window)
    return Feed(order, images, data.batch, ranks.share(data.batch))


class Drawn(NamedTuple):
    """The chance in a step, a rank's share of it."""

    noise: Noise
    flips_B: Tensor | None
    """Which images are mirrored; None where none ever is."""


class Chance:
    """What a step draws, by where it stands in the stream."""

    def __init__(
        self, seed: int, batch: int, latent: int, share: slice, *, flip: bool = False, slopes: Shape | None = None
    ) -> None:
        """batch: images of the global batch; share: this rank's part of it; slopes: shape of the images whose
        directions are drawn too."""
        self._seed = seed
        self._batch = batch
        self._latent = latent
        self._slopes = slopes
        self._share = share
        self._flip = flip

    def at(self, position: int) -> Drawn:
        """Of the step that starts here."""
        noise = generator(self._seed, "noise", position)
        posterior_BZ, prior_BZ = torch.randn(2, self._batch, self._latent, generator=noise)[:, self._share]
        directions = None
        if self._slopes is not None:
            directions = torch.randn(self._batch, *self._slopes, generator=noise)[self._share]
        flips_B = None
        if self._flip:
            flips = generator(self._seed, "flip", position)
            flips_B = torch.rand(self._batch, generator=flips)[self._share] < 0.5
        return Drawn(Noise(posterior_BZ, prior_BZ, directions), flips_B)


class Loaded(NamedTuple):
    """What a step needs, on the device."""

    ids: Ids
    """Rows of the whole global batch."""
    batch: Batch
    noise: Noise


class Loader:
    """Batches of one rank on its device.

    On a GPU the next batch is gathered and copied on a stream of its own while the device computes; there the whole set
    lies on the device where it takes no more than a quarter of the free memory.
    """

    def __init__(self, feed: Stream, chance: Chance, device: torch.device) -> None:
        self._feed = feed
        self._chance = chance
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: tuple[int, Loaded] | None = None
        if self._side is not None:
            feed.move_to(device, torch.cuda.mem_get_info(device)[0] // 4)

    def at(self, position: int) -> Loaded:
        """The batch at a position of the stream."""
        if self._side is None:
            return self._load(position)
        prepared, loaded = self._ahead or (-1, None)
        if loaded is None or prepared != position:
            return self._load(position)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._side)
        for tensor in (*loaded.batch, *loaded.noise):
            if tensor is not None:
                tensor.record_stream(current)
        return loaded

    def prepare(self, position: int) -> None:
        """Start on a batch that will be asked for next, where that can be done beside the step."""
        if self._side is not None:
            with torch.cuda.stream(self._side):
                self._ahead = position, self._load(position)

    def _load(self, position: int) -> Loaded:
        ids, images = self._feed.at(position)
        noise, flips_B = self._chance.at(position)
        flips_B = None if flips_B is None else self._moved(flips_B)
        return Loaded(ids, Batch(shown(self._moved(images), flips_B)), noise.each(self._moved))

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._side is None or tensor.is_cuda:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)


def shown(images: Tensor, flips_B: Tensor | None = None) -> Tensor:
    """(B, C, H, W) uint8 -> [0, 1], mirrored where `flips_B` holds; on the device they are on."""
    unit = images.float() / 255
    return unit if flips_B is None else torch.where(flips_B[:, None, None, None], unit.flip(-1), unit)
