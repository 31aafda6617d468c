"""Position in, images out: what training reads, in an order that depends on nothing but the seed.

The order is a permutation of shards, then permutations inside fixed windows of rows: a pure function of (seed, images
seen), the same in memory and streamed, for any number of workers. A batch may cross the end of an epoch. N rows.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from math import prod

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs
from torch import Tensor

from pipeline.data.manifest import IMAGE, Manifest, Shard, location
from pipeline.data.pixels import shape_of, unpacked
from pipeline.errors import Mistake

READERS = 4
"""Shards read at a time where all are held: hashing and decoding let go of the interpreter."""
SCRATCH = 3
"""Shards' worth of memory that reading one takes for a moment: its file, its column, and the copy that stays."""

Ids = npt.NDArray[np.int64]
"""Row numbers in the split, counted through its shards."""


class Order:
    """Which rows come when."""

    def __init__(self, shard_rows: Sequence[int], seed: int, window: int) -> None:
        self.rows = sum(shard_rows)
        self._window_rows = min(window, self.rows)
        self._seed = seed
        self._starts = np.array([0, *accumulate(shard_rows)], dtype=np.int64)
        self._window = lru_cache(maxsize=3)(self._permuted_window)

    def ids(self, position: int, count: int) -> Ids:
        """The rows at positions [position, position + count) of the endless stream."""
        pieces = []
        while count:
            epoch, offset = divmod(position, self.rows)
            window, start = divmod(offset, self._window_rows)
            piece = self._window(epoch, window)[start : start + count]
            pieces.append(piece)
            position, count = position + len(piece), count - len(piece)
        return np.concatenate(pieces)

    def following_window(self, position: int) -> Ids:
        """The rows of the window after the one at this position."""
        epoch, offset = divmod(position, self.rows)
        first = (offset // self._window_rows + 1) * self._window_rows
        if first >= self.rows:
            epoch, first = epoch + 1, 0
        return self._window(epoch, first // self._window_rows)

    def _permuted_window(self, epoch: int, window: int) -> Ids:
        shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._starts) - 1)
        lengths = self._starts[shards + 1] - self._starts[shards]
        ends = np.cumsum(lengths)
        low = window * self._window_rows
        high = min(low + self._window_rows, self.rows)
        touched = range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(ends, high, "left")) + 1)
        rows = np.concatenate([np.arange(lengths[i]) + self._starts[shards[i]] for i in touched])
        skipped = low - int(ends[touched[0]] - lengths[touched[0]])
        chosen = rows[skipped : skipped + high - low]
        return np.random.default_rng([self._seed, epoch, window]).permutation(chosen)


class Images:
    """The images of a split: all in memory where they fit the budget, else the shards near the position.

    Raises Mistake for a shard that is missing or whose sha256 differs, and for a budget too small to stream with.
    """

    def __init__(self, path: str, manifest: Manifest, split: str, window: int, budget_mb: int) -> None:
        self._filesystem, self._folder = location(path)
        self._manifest = manifest
        self._shards = shards_of(manifest, split)
        self._starts = np.array([0, *accumulate(shard.rows for shard in self._shards)], dtype=np.int64)
        self._budget = budget_mb * 2**20
        self._held: OrderedDict[int, Future[Tensor]] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, "images")
        self._whole: Tensor | None = None
        if self._bytes(int(self._starts[-1])) <= self._budget:
            self._whole = torch.empty((int(self._starts[-1]), *manifest.shape), dtype=torch.uint8)
            with ThreadPoolExecutor(READERS) as readers:
                list(readers.map(self._read_into, self._shards, self._starts))
        else:
            self._require_room_for(window)
            self._budget -= self._bytes(SCRATCH * self._largest)

    @property
    def streamed(self) -> bool:
        """Whether shards come and go."""
        return self._whole is None

    def move_to(self, device: torch.device, most_bytes: int) -> None:
        """Hold the images on a device from now on, where they are held whole and take no more than that."""
        if self._whole is not None and self._whole.nbytes <= most_bytes:
            self._whole = self._whole.to(device)

    def rows(self, ids: Ids) -> Tensor:
        """These images, (B, C, H, W) uint8, where they are held."""
        if self._whole is not None:
            index = torch.from_numpy(ids)
            if self._whole.is_cuda:
                index = index.pin_memory().to(self._whole.device, non_blocking=True)
            return self._whole[index]
        images = torch.empty((len(ids), *self._manifest.shape), dtype=torch.uint8)
        owners = np.searchsorted(self._starts, ids, "right") - 1
        for index in np.unique(owners):
            mine = owners == index
            local = torch.from_numpy(ids[mine] - self._starts[index])
            images[torch.from_numpy(mine)] = self._shard(int(index)).result()[local]
        return images

    def prefetch(self, ids: Ids) -> None:
        """Start reading the shards of rows that will be asked for soon; forget the longest unused ones."""
        if self._whole is not None:
            return
        indices = np.unique(np.searchsorted(self._starts, ids, "right") - 1)
        for index in indices:
            self._shard(int(index))

    def _shard(self, index: int) -> Future[Tensor]:
        if index not in self._held:
            while self._held and self._held_bytes() + self._bytes(self._shards[index].rows) > self._budget:
                self._held.popitem(last=False)
            self._held[index] = self._reader.submit(self._read, self._shards[index])
        self._held.move_to_end(index)
        return self._held[index]

    def _require_room_for(self, window: int) -> None:
        both = 2 * (window + 2 * self._largest)  # this window and the next, with the shards they only touch
        needed = self._bytes(both + SCRATCH * self._largest)
        if needed > self._budget:
            raise Mistake(
                f"data.budget_mb is {self._budget // 2**20}: streaming with data.window {window} takes "
                f"{-(-needed // 2**20)} MB a worker; raise the budget or lower the window"
            )

    @property
    def _largest(self) -> int:
        return max(shard.rows for shard in self._shards)

    def _held_bytes(self) -> int:
        return sum(self._bytes(self._shards[index].rows) for index in self._held)

    def _bytes(self, rows: int) -> int:
        return rows * prod(self._manifest.shape)

    def _read(self, shard: Shard) -> Tensor:
        images = read_shard(self._filesystem, self._folder, shard)
        pa.default_memory_pool().release_unused()  # what was scratch is the budget's again
        return images

    def _read_into(self, shard: Shard, start: int) -> None:
        assert self._whole is not None
        # through numpy: a torch operation would give this thread OpenMP threads of its own, and once there are more of
        # them than cores, all of them sleep between any two operations, in training too
        self._whole.numpy()[start : start + shard.rows] = self._read(shard).numpy()


class Feed:
    """The batches of one rank."""

    def __init__(self, order: Order, images: Images, batch: int, share: slice) -> None:
        self._order = order
        self._images = images
        self._batch = batch
        self._share = share
        self._ahead: Ids | None = None

    def move_to(self, device: torch.device, most_bytes: int) -> None:
        """See `Images.move_to`."""
        self._images.move_to(device, most_bytes)

    def at(self, position: int) -> tuple[Ids, Tensor]:
        """The rows of the whole batch at a position of the stream, and this rank's images, (B, C, H, W) uint8."""
        ids = self._order.ids(position, self._batch)
        images = self._images.rows(ids[self._share])
        if self._images.streamed:
            self._look_ahead(position)
        return ids, images

    def _look_ahead(self, position: int) -> None:
        ahead = self._order.following_window(position)
        if ahead is not self._ahead:
            self._ahead = ahead
            self._images.prefetch(ahead)


def shards_of(manifest: Manifest, split: str) -> tuple[Shard, ...]:
    """The shards of a split. Raises Mistake where there is no such split."""
    if split not in manifest.splits:
        raise Mistake(f"split {split!r} is not in the data set, which has {', '.join(manifest.splits)}")
    return manifest.splits[split]


def first_images(path: str, manifest: Manifest, split: str, count: int) -> Tensor:
    """The first `count` images of a split, or all there are: (N, C, H, W) uint8. Raises Mistake."""
    filesystem, folder = location(path)
    parts: list[Tensor] = []
    for shard in shards_of(manifest, split):
        if count <= 0:
            break
        parts.append(read_shard(filesystem, folder, shard)[:count])
        count -= len(parts[-1])
    return torch.cat(parts)


def first_columns(path: str, manifest: Manifest, split: str, names: Sequence[str], count: int) -> Tensor:
    """Columns of whole numbers beside the first `count` images of a split, (N, K) int64. Raises Mistake."""
    filesystem, folder = location(path)
    parts: list[Tensor] = []
    for shard in shards_of(manifest, split):
        if count <= 0:
            break
        table = _table(filesystem, folder, shard, names)
        for name in names:
            if table.column(name).null_count:
                raise Mistake(f"{folder}/{shard.path}: column {name!r} has gaps; every image needs a value there")
        columns = [table.column(name).cast(pa.int64()).to_numpy().copy() for name in names]
        parts.append(torch.stack([torch.from_numpy(column) for column in columns], 1)[:count])
        count -= len(parts[-1])
    return torch.cat(parts)


def read_shard(filesystem: fs.FileSystem, folder: str, shard: Shard) -> Tensor:
    """The images of one shard, (rows, C, H, W) uint8, once its sha256 has been checked. Raises Mistake."""
    table = _table(filesystem, folder, shard, [IMAGE])
    shape = shape_of(table.schema.field(IMAGE))
    if shape is None:
        raise Mistake(f"{folder}/{shard.path}: prepared by an earlier version; prepare the data again")
    return torch.from_numpy(unpacked(table.column(IMAGE).combine_chunks(), shape).copy())


def _table(filesystem: fs.FileSystem, folder: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    place = f"{folder}/{shard.path}"
    try:
        with filesystem.open_input_stream(place) as stream:
            data = stream.read()
    except OSError as error:
        raise Mistake(f"{place}: {error}; prepare the data again") from None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise Mistake(f"{place}: its sha256 differs from the manifest's: damaged or replaced; prepare the data again")
    return pq.read_table(pa.BufferReader(data), columns=list(columns))
