"""Where images come from: scikit-learn's digits, torchvision's sets, folders of pictures, Parquet files.

A source says how many rows its splits have and reads any stretch of them, so that shards can be made apart from each
other, in any process. What is held out by us, and how paths are shuffled, is the same on every machine.
"""

import difflib
import gzip
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.manifest import IMAGE
from pipeline.data.pixels import shape_of
from pipeline.errors import Mistake

SPLITS = {name: name for name in ("train", "val", "test")} | {"valid": "val", "validation": "val", "trainval": "train"}
"""What a folder or a file may be called, and the split that it is."""
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LABEL = pa.schema([("label", pa.int64())])

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """An image that has not been read yet."""

    where: str
    """Names it in errors: a path, or `train[17]`."""
    load: Callable[[], Image.Image]
    """Raises whatever the decoder raises for an image that cannot be read."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a split: their pictures, and every other column of theirs as it is in the source."""

    pictures: Sequence[Picture]
    columns: pa.Table


class Source(Protocol):
    """Splits of rows. Picklable: other processes read their part of it themselves."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the column `label`; empty where there are no classes."""

    @property
    def columns(self) -> pa.Schema:
        """Names and types of everything but the image."""

    def splits(self) -> dict[str, int]:
        """Rows of each split."""

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        """Rows [start, stop) of a split in order, in as many pieces as it takes."""


def open_source(name: str, path: Path | None = None, root: Path | None = None, column: str | None = None) -> Source:
    """The source called `name`: digits, folder, parquet or one of torchvision's sets.

    path: of a folder or of Parquet. root: of an existing torchvision set; without it the set is downloaded. column:
    the image column of Parquet that has several. Raises Mistake.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise Mistake(f"SOURCE is {name!r}; {meant}expected one of {', '.join(names())}")
    takes = {"digits": set(), "folder": {"PATH"}, "parquet": {"PATH", "--column"}}.get(name, {"--root"})
    for option, value in {"PATH": path, "--root": root, "--column": column}.items():
        if value is not None and option not in takes:
            raise Mistake(f"{option} is {str(value)!r}: the source {name!r} has no use for it; leave it out")
    if path is None and "PATH" in takes:
        raise Mistake(f"PATH is missing: the source {name!r} reads one; name it after {name!r}")
    if name == "digits":
        return DigitsSource()
    if path is None:
        return open_torchvision(name, root)
    return open_folder(path.absolute()) if name == "folder" else open_parquet(path.absolute(), column)


def names() -> tuple[str, ...]:
    """What `open_source` knows."""
    return ("digits", "folder", "parquet", *TORCHVISION)


def shuffled(count: int) -> Positions:
    """The same permutation of `count` everywhere: NumPy promises never to change this generator's stream."""
    return np.random.RandomState(0).permutation(count).astype(np.int64)


def held_out(count: int, share: float) -> dict[str, Positions]:
    """Positions of train and test, apart from each other, each in ascending order."""
    order, tests = shuffled(count), max(1, round(count * share))
    return {"train": np.sort(order[tests:]), "test": np.sort(order[:tests])}


@dataclass(frozen=True)
class DigitsSource:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey; a fifth of them is held out. Needs no download."""

    class_names: tuple[str, ...] = tuple("0123456789")
    columns: pa.Schema = LABEL

    def splits(self) -> dict[str, int]:
        return {split: len(positions) for split, positions in held_out(len(_digits()[0]), 0.2).items()}

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        images, labels = _digits()
        chosen = held_out(len(images), 0.2)[split][start:stop]
        pictures = [
            Picture(f"{split}[{number}]", partial(Image.fromarray, images[position]))
            for number, position in enumerate(chosen, start)
        ]
        yield Rows(pictures, pa.table([labels[chosen]], schema=LABEL))


@lru_cache(maxsize=1)
def _digits() -> tuple[npt.NDArray[np.uint8], Positions]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


@dataclass(frozen=True)
class Kept:
    """How torchvision keeps a set: its class there, what asks that class for each split, and where the labels are."""

    kind: str
    splits: dict[str, dict[str, str | bool]]
    labels: Literal["targets", "labels", "attr"]
    class_names: tuple[str, ...] = ()
    """Where torchvision does not say."""


_BY_FLAG: dict[str, dict[str, str | bool]] = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME: dict[str, dict[str, str | bool]] = {"train": {"split": "train"}, "test": {"split": "test"}}
TORCHVISION = {
    "mnist": Kept("MNIST", _BY_FLAG, "targets"),
    "fashion-mnist": Kept("FashionMNIST", _BY_FLAG, "targets"),
    "kmnist": Kept("KMNIST", _BY_FLAG, "targets"),
    "usps": Kept("USPS", _BY_FLAG, "targets", tuple("0123456789")),
    "cifar10": Kept("CIFAR10", _BY_FLAG, "targets"),
    "cifar100": Kept("CIFAR100", _BY_FLAG, "targets"),
    "svhn": Kept("SVHN", _BY_NAME, "labels", tuple("0123456789")),
    "stl10": Kept("STL10", _BY_NAME, "labels"),
    "celeba": Kept("CelebA", _BY_NAME | {"val": {"split": "valid"}}, "attr"),
}


@dataclass(frozen=True)
class TorchvisionSource:
    """One of torchvision's sets, already on disk. CelebA's 40 attributes are columns of their own."""

    name: str
    root: Path

    @property
    def class_names(self) -> tuple[str, ...]:
        return TORCHVISION[self.name].class_names or tuple(getattr(self._kept("train"), "classes", ()))

    @property
    def columns(self) -> pa.Schema:
        return self._labels("train", 0, 0).schema

    def splits(self) -> dict[str, int]:
        return {split: len(self._kept(split)) for split in TORCHVISION[self.name].splits}

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        dataset = self._kept(split)
        pictures = [Picture(f"{split}[{i}]", partial(_first, dataset, i)) for i in range(start, stop)]
        yield Rows(pictures, self._labels(split, start, stop))

    def _kept(self, split: str) -> Any:
        return _torchvision(self.name, self.root, split)

    def _labels(self, split: str, start: int, stop: int) -> pa.Table:
        dataset, attribute = self._kept(split), TORCHVISION[self.name].labels
        labels = np.asarray(getattr(dataset, attribute)[start:stop])
        if attribute != "attr":
            return pa.table([labels.astype(np.int64)], schema=LABEL)
        attributes = [name for name in dataset.attr_names if name]  # the file's header ends with a blank
        return pa.table(dict(zip(attributes, labels.astype(bool).T, strict=True)))


def _first(dataset: Any, index: int) -> Image.Image:
    return dataset[index][0]


def open_torchvision(name: str, root: Path | None) -> TorchvisionSource:
    """The set in `root`, or downloaded into the cache. Raises Mistake where it is not there, or cannot be had."""
    source = TorchvisionSource(name, root.absolute() if root else Path.home() / ".cache" / "vaegan")
    if root is None:
        _download(name, source.root)
    source.splits()
    return source


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    kept = TORCHVISION[name]
    try:
        for split in kept.splits.values():
            getattr(datasets, kept.kind)(root, download=True, **split)
    except (OSError, RuntimeError) as error:
        raise Mistake(
            f"{name} could not be downloaded into {str(root)!r} ({error}); fetch it where there is a network, with "
            f"torchvision.datasets.{kept.kind}, and name the folder with --root"
        ) from None


@lru_cache(maxsize=4)
def _torchvision(name: str, root: Path, split: str) -> Any:
    from torchvision import datasets

    kept = TORCHVISION[name]
    try:
        with _unpacked(root, kept.kind) as folder:
            return getattr(datasets, kept.kind)(folder, download=False, **kept.splits[split])
    except (EOFError, OSError, RuntimeError) as error:
        raise Mistake(
            f"--root is {str(root)!r}: no readable {name} there ({error}); name the folder that "
            f"torchvision.datasets.{kept.kind} was given, or leave --root out to download it"
        ) from None


@contextmanager
def _unpacked(root: Path, kind: str) -> Iterator[Path]:
    """`root`, or a temporary copy where MNIST or its kin are still packed: root may be read-only."""
    packed = sorted((root / kind / "raw").glob("*.gz"))
    if all(path.with_suffix("").exists() for path in packed):
        yield root
        return
    with TemporaryDirectory() as folder:
        raw = Path(folder) / kind / "raw"
        raw.mkdir(parents=True)
        for path in packed:
            with gzip.open(path) as source, (raw / path.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        yield Path(folder)


@dataclass(frozen=True)
class FolderSource:
    """Picture files, listed once: every process sees the same ones."""

    root: Path
    files: dict[str, tuple[str, ...]]
    """Paths of each split relative to the root."""
    class_names: tuple[str, ...]
    class_part: int
    """Which part of a path is its class folder."""

    @property
    def columns(self) -> pa.Schema:
        path = pa.field("path", pa.string())
        return LABEL.append(path) if self.class_names else pa.schema([path])

    def splits(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        files = self.files[split][start:stop]
        pictures = [Picture(str(self.root / file), partial(_from_file, self.root / file)) for file in files]
        number = {name: label for label, name in enumerate(self.class_names)}
        columns: dict[str, Sequence[object]] = {"path": files}
        if number:
            columns["label"] = [number[Path(file).parts[self.class_part]] for file in files]
        yield Rows(pictures, pa.table(columns, schema=self.columns))


def open_folder(root: Path) -> FolderSource:
    """Pictures in class folders or without classes, below split folders or not. Raises Mistake."""
    if not root.is_dir():
        raise Mistake(f"PATH is {str(root)!r}: there is no such folder")
    paths = sorted(_pictures_below(root))
    if not paths:
        raise Mistake(f"PATH is {str(root)!r}: no images below it, which end in {', '.join(sorted(SUFFIXES))}")
    split_folders = all(path.parts[0] in SPLITS for path in paths)
    class_part = 1 if split_folders else 0
    classes = {path.parts[class_part] if len(path.parts) > class_part + 1 else None for path in paths}
    if None in classes and len(classes) > 1:
        raise Mistake(f"PATH is {str(root)!r}: some images are in class folders and some are beside them; part them")
    mixed = [paths[i] for i in shuffled(len(paths))]
    if split_folders:
        named = [SPLITS[path.parts[0]] for path in mixed]
        chosen = {split: np.flatnonzero(np.array(named) == split) for split in dict.fromkeys(SPLITS.values())}
    else:
        chosen = held_out(len(mixed), 0.1)
    files = {split: tuple(mixed[i].as_posix() for i in at) for split, at in chosen.items() if len(at)}
    return FolderSource(root, files, tuple(sorted(name for name in classes if name)), class_part)


def _pictures_below(root: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            path = (Path(folder) / file).relative_to(root)
            if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts):
                yield path


def _from_file(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@dataclass(frozen=True)
class RowGroup:
    """The unit in which Parquet is read."""

    file: str
    number: int
    first: int
    """Its first row, counted through the file."""
    rows: int


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files in their order. A file that lacks a column of the others has nulls in it."""

    groups: dict[str, tuple[RowGroup, ...]]
    """Of the files that each split is in."""
    positions: dict[str, Positions]
    """Which of their rows are the split's, ascending."""
    image: pa.Field
    columns: pa.Schema
    class_names: tuple[str, ...]

    def splits(self) -> dict[str, int]:
        return {split: len(positions) for split, positions in self.positions.items()}

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        wanted, groups = self.positions[split][start:stop], self.groups[split]
        starts = np.cumsum([0, *(group.rows for group in groups)])
        for index in np.unique(np.searchsorted(starts, wanted, "right") - 1):
            inside = wanted[(wanted >= starts[index]) & (wanted < starts[index + 1])] - starts[index]
            yield self._read(groups[index], inside)

    def _read(self, group: RowGroup, inside: Positions) -> Rows:
        try:
            table = pq.ParquetFile(group.file).read_row_group(group.number).take(inside)
        except (OSError, pa.ArrowException) as error:
            raise Mistake(f"{group.file} is damaged ({error}); fetch it again") from None
        decode = decoder(self.image)
        assert decode, "an image column was chosen that cannot be decoded"
        pictures = [
            Picture(f"{group.file}[{group.first + row}]", partial(decode, value))
            for row, value in zip(inside, table[self.image.name], strict=True)
        ]
        nulls = partial(pa.nulls, len(table))
        present = [table[f.name] if f.name in table.column_names else nulls(f.type) for f in self.columns]
        return Rows(pictures, pa.table(present, schema=self.columns))


def open_parquet(path: Path, column: str | None) -> ParquetSource:
    """One file, or all `*.parquet` files of a folder. Raises Mistake."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise Mistake(f"PATH is {str(path)!r}: there are no .parquet files")
    try:
        footers = {file: pq.ParquetFile(file) for file in files}
        schema = pa.unify_schemas([footer.schema_arrow for footer in footers.values()])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise Mistake(f"PATH is {str(path)!r}: {str(error).splitlines()[0]}") from None
    image = _image_column(schema, column)
    groups: dict[str, list[RowGroup]] = {}
    for file, footer in footers.items():
        groups.setdefault(_split_of(file), []).extend(_row_groups(file, footer.metadata))
    ordered = sorted(groups, key=lambda split: [*SPLITS, split].index(split))  # train first
    parts, positions = _parted({split: tuple(groups[split]) for split in ordered}, path)
    columns = pa.schema([field for field in schema if field.name != image.name])
    return ParquetSource(parts, positions, image, columns, _class_names(schema))


def _split_of(file: Path) -> str:
    """`train-00000-of-00003` is train, whatever stands there; a name without `-of-` only where we know it."""
    name, numbered = re.fullmatch(r"(.+?)(?:-\d+)?(-of-\d+)?", file.stem).groups()  # type: ignore[union-attr]
    return SPLITS.get(name, name if numbered else "")


def _row_groups(file: Path, footer: pq.FileMetaData) -> Iterator[RowGroup]:
    first = 0
    for number in range(footer.num_row_groups):
        rows = footer.row_group(number).num_rows
        yield RowGroup(str(file), number, first, rows)
        first += rows


def _parted(
    groups: dict[str, tuple[RowGroup, ...]], path: Path
) -> tuple[dict[str, tuple[RowGroup, ...]], dict[str, Positions]]:
    """The splits that file names give, or train and test held out of files whose names give none."""
    counts = {split: sum(group.rows for group in of) for split, of in groups.items()}
    if "" not in groups:
        return groups, {split: np.arange(count) for split, count in counts.items()}
    if len(groups) > 1:
        given, other = (sorted({group.file for group in groups[split]})[0] for split in (max(groups), ""))
        raise Mistake(
            f"PATH is {str(path)!r}: {Path(given).name} names a split, {Path(other).name} does not; part them"
        )
    return dict.fromkeys(("train", "test"), groups[""]), held_out(counts[""], 0.1)


def _image_column(schema: pa.Schema, column: str | None) -> pa.Field:
    """The one column that holds images; of several, the one called `image`, unless --column says which."""
    able = [field.name for field in schema if decoder(field)]
    if column is None and IMAGE not in able and len(able) != 1:
        if not able:
            raise Mistake(f"PATH has no column of encoded images or uint8 arrays, only {', '.join(schema.names)}")
        raise Mistake(f"the image could be any of the columns {', '.join(able)} of PATH; name one with --column")
    chosen = column or (IMAGE if IMAGE in able else able[0])
    if chosen not in able:
        raise Mistake(f"--column is {chosen!r}; expected one of {', '.join(able) or 'none: no column holds images'}")
    if chosen != IMAGE and IMAGE in schema.names:
        raise Mistake(f"--column is {chosen!r}, which we would call {IMAGE!r}, but another column is called that")
    return schema.field(chosen)


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """As Hugging Face writes them beside the schema."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(noted.get("info", {}).get("features", {}).get("label", {}).get("names", ()))


def decoder(field: pa.Field) -> Callable[[pa.Scalar], Image.Image] | None:
    """What makes an image of a value of this column: encoded bytes, {bytes, path}, uint8 arrays HW, CHW or HWC, or
    pixels as prepared data sets have them."""
    kind, shape = field.type, shape_of(field)
    if shape is not None:
        return partial(_from_pixels, shape)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _from_bytes
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _from_struct if decoder(kind.field("bytes")) is _from_bytes else None
    if isinstance(kind, pa.FixedShapeTensorType):
        return _from_tensor if kind.value_type == pa.uint8() and len(kind.shape) in (2, 3) else None
    depth = 0
    while pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return _from_lists if kind == pa.uint8() and depth in (2, 3) else None


def _from_bytes(value: pa.Scalar) -> Image.Image:
    if not value.is_valid:
        raise ValueError("there is none in this row")
    with Image.open(io.BytesIO(value.as_py())) as image:
        image.load()
        return image


def _from_struct(value: pa.Scalar) -> Image.Image:
    return _from_bytes(value["bytes"])


def _from_pixels(shape: tuple[int, int, int], value: pa.Scalar) -> Image.Image:
    return _from_array(np.frombuffer(value.as_py(), np.uint8).reshape(shape))


def _from_tensor(value: pa.Scalar) -> Image.Image:
    return _from_array(value.to_numpy())


def _from_lists(value: pa.Scalar) -> Image.Image:
    return _from_array(np.array(value.as_py(), np.uint8))


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
    array = np.moveaxis(array, 0, -1) if channels_first else array
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
