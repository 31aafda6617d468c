"""A prepared data set is the source's images, resized, and nothing else changed; or it is not there at all."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image, ImageOps
from pyarrow.fs import LocalFileSystem
from sklearn.datasets import load_digits

from pipeline.data import prepare as preparing
from pipeline.data.batches import read_shard
from pipeline.data.manifest import Manifest, Shard, load
from pipeline.data.pixels import packed, shape_of, unpacked
from pipeline.data.prepare import fitted, prepare
from pipeline.data.sources import DigitsSource, Rows, held_out, open_source
from pipeline.errors import Mistake
from tests.pipeline.test_sources import needs, noise, png, save


def table(folder: Path, manifest: Manifest, split: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(folder / shard.path) for shard in manifest.splits[split])


def images(folder: Path, manifest: Manifest, split: str) -> np.ndarray:
    rows = table(folder, manifest, split)
    shape = shape_of(rows.schema.field("image"))
    assert shape is not None
    return unpacked(rows["image"].combine_chunks(), shape)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(preparing, "SHARD_ROWS", 300)


def test_the_digits_arrive_resized_with_their_labels(tmp_path, small_shards):
    manifest = prepare(open_source("digits"), "digits", tmp_path / "out", size=16, progress=False)
    assert manifest == load(str(tmp_path / "out"))
    assert (manifest.shape, manifest.skipped, manifest.source) == ((1, 16, 16), 0, "digits")
    assert manifest.rows("train") + manifest.rows("test") == 1797
    assert [shard.rows for shard in manifest.splits["train"]] == [300, 300, 300, 300, 238]
    rows = table(tmp_path / "out", manifest, "train")
    assert rows.schema.field("image").type == pa.binary(16 * 16)
    assert shape_of(rows.schema.field("image")) == (1, 16, 16)
    assert {name: str(rows.schema.field(name).type) for name in rows.column_names[1:]} == manifest.columns
    bunch, position = load_digits(), held_out(1797, 0.2)["train"][1000]
    bytes_ = np.rint(bunch.images[position] * 255 / 16).astype(np.uint8)
    expected = np.asarray(Image.fromarray(bytes_).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(images(tmp_path / "out", manifest, "train")[1000, 0], expected)
    assert rows["label"][1000].as_py() == bunch.target[position]


def test_train_and_test_have_no_row_in_common(tmp_path):
    manifest = prepare(open_source("digits"), "digits", tmp_path / "out", size=8, progress=False)
    train, test = ({row.tobytes() for row in images(tmp_path / "out", manifest, split)} for split in ("train", "test"))
    assert len(train) == 1438
    assert train.isdisjoint(test)


def test_the_short_side_is_fitted_and_the_middle_kept():
    image = Image.fromarray(noise(0, 80, 40, 3))
    middle = image.resize((10, 20), Image.Resampling.BILINEAR).crop((0, 5, 10, 15))
    difference = fitted(image, "RGB", 10).astype(int) - np.asarray(middle, int).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 1  # Pillow rounds between its two passes


def test_an_image_that_has_the_size_is_not_touched():
    pixels = noise(0, 12, 12, 3)
    assert np.array_equal(fitted(Image.fromarray(pixels), "RGB", 12), pixels.transpose(2, 0, 1))


def test_bits_and_palettes_are_resized_as_colours():
    bits = Image.fromarray(noise(0, 16, 16) > 127)
    assert bits.mode == "1"
    assert len(np.unique(fitted(bits, "L", 8))) > 2
    palette = Image.fromarray(noise(1, 16, 16, 3)).quantize(16)
    expected = ImageOps.fit(palette.convert("RGB"), (8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(fitted(palette, "RGB", 8), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.int32, 65535), (np.float32, 1)])
def test_deep_pixels_keep_their_place_between_black_and_white(dtype, white):
    shares = np.linspace(0, 1, 64).reshape(8, 8)
    got = fitted(Image.fromarray((shares * white).astype(dtype)), "L", 8)[0]
    assert np.abs(got - shares * 255).max() <= 0.6


def test_pixels_blacker_than_black_or_whiter_than_white_are_not_guessed_at():
    for mode, value in (("F", -0.1), ("F", 255.0), ("F", float("nan")), ("I", 70000)):
        with pytest.raises(ValueError, match=f"mode {mode} are not all in"):
            fitted(Image.new(mode, (8, 8), value), "L", 8)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("RGB", 3), ("P", 3)])
def test_the_first_image_decides_the_channels(tmp_path, mode, channels):
    for number in range(2):
        path = tmp_path / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (9, 9)).save(path)
    manifest = prepare(open_source("folder", tmp_path / "in"), "", tmp_path / "out", size=8, progress=False)
    assert manifest.shape == (channels, 8, 8)


@pytest.fixture
def damaged(tmp_path):
    """Forty readable pictures of one colour each, and one that is cut short."""
    for number in range(40):
        save(tmp_path / "in" / "train" / f"{number}.png", np.full((8, 8, 3), number, np.uint8))
    save(tmp_path / "in" / "test" / "0.png", noise(0, 8, 8, 3))
    bad = tmp_path / "in" / "train" / "bad.png"
    bad.write_bytes(png(noise(1, 30, 30, 3))[:1000])
    return bad


def test_a_corrupt_image_is_named_and_nothing_is_left_behind(tmp_path, damaged):
    source = open_source("folder", tmp_path / "in")
    with pytest.raises(Mistake, match=rf"^{damaged} cannot be read as an image .*--skip-bad leaves such images out$"):
        prepare(source, "", tmp_path / "out", size=8, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_skipped_images_are_counted_and_the_columns_stay_beside_their_images(tmp_path, damaged, small_shards):
    source = open_source("folder", tmp_path / "in")
    manifest = prepare(source, "", tmp_path / "out", size=8, skip_bad=True, progress=False)
    assert manifest.skipped == 1
    assert manifest.rows("train") == 40
    rows = table(tmp_path / "out", manifest, "train")
    numbers = [int(Path(path).stem) for path in rows["path"].to_pylist()]
    assert images(tmp_path / "out", manifest, "train")[:, 0, 0, 0].tolist() == numbers


def test_a_shard_without_a_readable_image_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD_ROWS", 2)
    data = [png(noise(n, 8, 8)) for n in range(2)]
    pq.write_table(pa.table({"image": [b"", None, *data]}), tmp_path / "train.parquet")
    source = open_source("parquet", tmp_path)
    manifest = prepare(source, "", tmp_path / "out", size=8, skip_bad=True, progress=False)
    assert [shard.path for shard in manifest.splits["train"]] == ["train-00001.parquet"]
    assert manifest.skipped == 2


def test_a_split_left_empty_is_named(tmp_path, damaged):
    (tmp_path / "in" / "test" / "0.png").write_bytes(b"no image")
    with pytest.raises(Mistake, match="split 'test' has no image"):
        source = open_source("folder", tmp_path / "in")
        prepare(source, "", tmp_path / "out", size=8, skip_bad=True, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(Mistake, match=r"--out is '.*out': it exists; remove it or choose another folder"):
        prepare(open_source("digits"), "digits", tmp_path / "out", size=8, progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_size_too_small_to_learn_from_is_refused(tmp_path):
    with pytest.raises(Mistake, match="--size is 7; expected a whole number of pixels >= 8"):
        prepare(open_source("digits"), "digits", tmp_path / "out", size=7, progress=False)


@dataclass(frozen=True)
class Interrupted(DigitsSource):
    """Ctrl-C arrives when the third shard is begun."""

    beside: Path = Path()

    def rows(self, split: str, start: int, stop: int) -> Iterator[Rows]:
        if start >= 600:
            (partial,) = self.beside.iterdir()
            assert len(list(partial.glob("train-*.parquet"))) == 2
            raise KeyboardInterrupt
        return super().rows(split, start, stop)


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path, small_shards):
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(beside=tmp_path), "digits", tmp_path / "out", size=8, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_rows_on_stderr(tmp_path, capsys):
    prepare(open_source("digits"), "digits", tmp_path / "out", size=8)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1.80k/1.80k" in captured.err
    assert "rows/s" in captured.err


def test_fashion_mnist_keeps_its_bytes_at_its_own_size(tmp_path):
    source = open_source("fashion-mnist", root=needs("FashionMNIST").parent)
    manifest = prepare(source, "fashion-mnist", tmp_path / "out", size=28, progress=False)
    assert (manifest.shape, manifest.rows("train"), manifest.rows("test")) == ((1, 28, 28), 60000, 10000)
    (piece,) = source.rows("test", 0, 10000)
    expected = np.stack([np.asarray(picture.load()) for picture in piece.pictures])
    assert np.array_equal(images(tmp_path / "out", manifest, "test")[:, 0], expected)
    assert table(tmp_path / "out", manifest, "test")["label"].to_pylist() == piece.columns["label"].to_pylist()


def test_the_nouns_keep_their_factors_and_their_grid(tmp_path):
    source = open_source("parquet", needs("nouns") / "factors-00000-of-00001.parquet")
    manifest = prepare(source, "nouns", tmp_path / "out", size=32, progress=False)
    original = pq.read_table(needs("nouns") / "factors-00000-of-00001.parquet")
    prepared = table(tmp_path / "out", manifest, "factors")
    assert manifest.shape == (3, 32, 32)
    assert prepared.drop_columns("image").equals(original.drop_columns("image").replace_schema_metadata(None))
    with Image.open(io.BytesIO(original["image"][1234].as_py())) as figure:
        expected = np.asarray(figure.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(images(tmp_path / "out", manifest, "factors")[1234], expected)


def test_one_bit_boards_keep_their_masks(tmp_path):
    source = open_source("parquet", needs("deeppcb_patches64") / "trainval-00002-of-00003.parquet")
    manifest = prepare(source, "boards", tmp_path / "out", size=64, progress=False)
    original = pq.read_table(needs("deeppcb_patches64") / "trainval-00002-of-00003.parquet")
    prepared = table(tmp_path / "out", manifest, "train")
    assert prepared.drop_columns("image").equals(original.drop_columns("image").replace_schema_metadata(None))
    assert set(np.unique(images(tmp_path / "out", manifest, "train"))) == {0, 255}


@pytest.mark.cluster
def test_two_workers_write_what_none_would(tmp_path, small_shards):
    source = open_source("digits")
    alone = prepare(source, "digits", tmp_path / "alone", size=16, progress=False)
    together = prepare(source, "digits", tmp_path / "together", size=16, workers=2, progress=False)
    assert together == alone == load(str(tmp_path / "together"))
    for shard in alone.splits["train"]:
        assert (tmp_path / "together" / shard.path).read_bytes() == (tmp_path / "alone" / shard.path).read_bytes()


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.mark.cluster
def test_a_worker_names_a_corrupt_image_as_this_process_would(cluster, tmp_path, damaged):
    source = open_source("folder", tmp_path / "in")
    with pytest.raises(Mistake) as alone:
        prepare(source, "", tmp_path / "out", size=8, progress=False)
    with pytest.raises(Mistake) as together:
        prepare(source, "", tmp_path / "out", size=8, workers=2, progress=False)
    assert str(together.value) == str(alone.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.cluster
def test_more_workers_than_the_cluster_has_are_refused_before_any_work(cluster, tmp_path):
    cores = int(ray.cluster_resources()["CPU"])
    with pytest.raises(Mistake, match=f"--workers is {cores + 1}; the cluster has {cores} CPUs"):
        prepare(open_source("digits"), "digits", tmp_path / "out", size=8, workers=cores + 1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_set_can_be_prepared_again(tmp_path, small_shards):
    first = prepare(open_source("digits"), "digits", tmp_path / "first", size=16, progress=False)
    source = open_source("parquet", tmp_path / "first")
    second = prepare(source, "parquet", tmp_path / "second", size=16, progress=False)
    assert second.splits["train"] == first.splits["train"]
    assert np.array_equal(images(tmp_path / "second", second, "test"), images(tmp_path / "first", first, "test"))


def test_pixels_come_back_from_any_part_of_a_column():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 2, 4), np.uint8)
    field, column = packed(pixels, "image")
    assert shape_of(field) == (3, 2, 4)
    assert np.array_equal(unpacked(column, (3, 2, 4)), pixels)
    assert np.array_equal(unpacked(column[2:6], (3, 2, 4)), pixels[2:6])
    assert np.array_equal(unpacked(column[3:3], (3, 2, 4)), pixels[3:3])


def test_a_column_is_pixels_only_where_it_says_so():
    assert shape_of(pa.field("image", pa.binary(8))) is None
    assert shape_of(pa.field("image", pa.binary(), metadata={"shape": "[1, 2, 4]"})) is None


def test_a_set_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    manifest = prepare(open_source("digits"), "digits", tmp_path / "out", size=8, progress=False)
    (shard,) = manifest.splits["train"]
    old = tmp_path / "out" / shard.path
    pq.write_table(
        pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 1, 8, 8), np.uint8))}), old
    )
    digest = hashlib.sha256(old.read_bytes()).hexdigest()
    with pytest.raises(Mistake, match=r"train-00000\.parquet: prepared by an earlier version; prepare the data again"):
        read_shard(LocalFileSystem(), str(tmp_path / "out"), Shard(path=shard.path, rows=2, sha256=digest))
