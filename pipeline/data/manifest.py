"""`dataset.json`: what a prepared data set holds, so that nothing has to be guessed and damage is seen.

A data set is a folder, local or on any filesystem pyarrow knows (s3://, gs://):

    dataset.json
    train-00000.parquet ...     column `image`: uint8 pixels (`pipeline.data.pixels`); every other column kept
    test-00000.parquet ...
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pyarrow import fs

from pipeline.errors import Mistake

MANIFEST = "dataset.json"
IMAGE, LABEL = "image", "label"
WHOLE = ("int", "uint", "bool")
"""How the types of columns of whole numbers begin."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file."""

    path: str
    """Relative to the data set's folder."""
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Shape, columns, class names and shards of a data set."""

    source: str
    """What it was prepared from, as the command had it."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    columns: dict[str, str]
    """Name -> Arrow type, `image` apart."""
    class_names: tuple[str, ...]
    """Of the column `label`; empty where there are no classes."""
    skipped: int
    """Unreadable images left out with --skip-bad."""
    splits: dict[str, tuple[Shard, ...]]

    @property
    def whole(self) -> list[str]:
        """Columns of whole numbers: what can be classified."""
        return [name for name, kind in self.columns.items() if kind.startswith(WHOLE)]

    def rows(self, split: str) -> int:
        """Images of a split."""
        return sum(shard.rows for shard in self.splits[split])

    @property
    def digest(self) -> str:
        """One sha256 of everything training can see: shape, columns, classes, splits and every shard."""
        seen = {key: value for key, value in asdict(self).items() if key not in {"source", "skipped"}}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        rows = {split: self.rows(split) for split in self.splits}
        return json.dumps(asdict(self) | {"rows": rows, "digest": self.digest}, indent=2) + "\n"


def location(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it of a local path or a URI."""
    if "://" in path:
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), absolute(path)


def absolute(path: str) -> str:
    """The same place for a process that works in another folder, as Ray's workers do."""
    return path if "://" in path else str(Path(path).absolute())


def load(path: str) -> Manifest:
    """The manifest of a data set. Raises Mistake where there is none, or one that was changed by hand."""
    try:
        filesystem, folder = location(path)
        with filesystem.open_input_stream(f"{folder}/{MANIFEST}") as stream:
            read = json.loads(stream.read())
    except FileNotFoundError:
        raise Mistake(
            f"data.path is {path!r}: no {MANIFEST} there; prepare it with `vaegan data prepare SOURCE --out {path}`"
        ) from None
    except json.JSONDecodeError:
        raise Mistake(f"{path}/{MANIFEST} is damaged; prepare the data again") from None
    except (OSError, ValueError) as error:  # ValueError: pyarrow knows no such scheme
        raise Mistake(f"data.path is {path!r}: {' '.join(str(error).split())}") from None
    try:
        manifest = Manifest(
            source=read["source"],
            shape=tuple(read["shape"]),
            columns=read["columns"],
            class_names=tuple(read["class_names"]),
            skipped=read["skipped"],
            splits={split: tuple(Shard(**shard) for shard in shards) for split, shards in read["splits"].items()},
        )
        intact = manifest.digest == read["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise Mistake(f"{path}/{MANIFEST} is not a manifest of ours ({error!r}); prepare the data again") from None
    if not intact:
        raise Mistake(f"{path}/{MANIFEST} does not match its own digest: it was edited; prepare the data again")
    return manifest
