"""Data sets for benchmarks: images made of noise, prepared as `vaegan data prepare` would."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.data import manifest as manifests
from pipeline.data import prepare as preparing
from pipeline.data.batches import Feed
from pipeline.data.loader import feed_of
from pipeline.data.manifest import Manifest
from pipeline.data.prepare import SHARD_ROWS, prepare
from pipeline.data.sources import LABEL, Picture, Rows
from pipeline.ranks import Ranks
from pipeline.settings import Data, Settings

SEED = 0


@dataclass(frozen=True)
class Blots:
    """Noise of 8 x 8, which preparing makes larger and so smooth."""

    count: int
    channels: int
    held_out: int = 0
    class_names: tuple[str, ...] = ()
    columns: pa.Schema = LABEL

    def splits(self) -> dict[str, int]:
        return {"train": self.count} | ({"test": self.held_out} if self.held_out else {})

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        shape = (stop - start, 8, 8, self.channels)
        noise = np.random.default_rng([SEED, start]).integers(0, 256, shape, np.uint8)
        pixels = noise[..., 0] if self.channels == 1 else noise
        pictures = [Picture(f"{split}[{i}]", partial(Image.fromarray, image)) for i, image in enumerate(pixels, start)]
        yield Rows(pictures, pa.table([np.arange(start, stop)], schema=self.columns))


def blots(folder: Path, count: int, channels: int, size: int, shard_rows: int = SHARD_ROWS, held_out: int = 0) -> str:
    """The path of such a set of `count` images, in shards of so many rows, and a test split where asked for."""
    out = folder / f"{count}x{channels}x{size}x{size}-by-{shard_rows}"
    with mock.patch.object(preparing, "SHARD_ROWS", shard_rows):
        prepare(Blots(count, channels, held_out), "blots", out, size=size, progress=False)
    return str(out)


def megabytes(manifest: Manifest) -> float:
    """Of all pixels."""
    return manifest.rows("train") * int(np.prod(manifest.shape)) / 2**20


def feed(path: str, batch: int, window: int, budget_mb: int) -> Feed:
    """What a single rank reads from."""
    data = Data(path=path, batch=batch, window=window, budget_mb=budget_mb)
    return feed_of(Settings(name="bench", seed=SEED, data=data), manifests.load(path), Ranks())
