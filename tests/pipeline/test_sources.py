"""What a source gives is what is in the files: the right images, every column, the right splits."""

import gzip
import io
import json
import stat
import struct
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.data.sources import TORCHVISION, Source, decoder, held_out, open_source
from pipeline.errors import Mistake

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def needs(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"shared data set {folder} is not on this machine")
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def read(source: Source, split: str) -> tuple[list[np.ndarray], list[str], pa.Table]:
    pieces = list(source.rows(split, 0, source.splits()[split]))
    pictures = [picture for piece in pieces for picture in piece.pictures]
    images = [np.asarray(picture.load()) for picture in pictures]
    return images, [picture.where for picture in pictures], pa.concat_tables(piece.columns for piece in pieces)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_what_is_held_out_is_apart_from_the_rest_and_never_changes():
    parts = held_out(1000, 0.1)
    assert [len(parts["train"]), len(parts["test"])] == [900, 100]
    assert sorted([*parts["train"], *parts["test"]]) == list(range(1000))
    assert parts["test"][:5].tolist() == [1, 14, 27, 31, 45]


def test_the_digits_are_all_there_once_with_their_labels():
    source, bunch = open_source("digits"), load_digits()
    assert source.splits() == {"train": 1438, "test": 359}
    got = [(image.tobytes(), label) for split in source.splits() for image, label in labelled(source, split)]
    expected = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    assert sorted(got) == sorted((image.tobytes(), label) for image, label in zip(expected, bunch.target, strict=True))


def labelled(source: Source, split: str) -> list[tuple[np.ndarray, int]]:
    images, _, columns = read(source, split)
    return list(zip(images, columns["label"].to_pylist(), strict=True))


def test_a_stretch_of_rows_is_a_slice_of_the_split():
    source = open_source("digits")
    whole, where, columns = read(source, "train")
    (piece,) = source.rows("train", 700, 710)
    assert [picture.where for picture in piece.pictures] == where[700:710]
    assert np.array_equal([np.asarray(picture.load()) for picture in piece.pictures], whole[700:710])
    assert piece.columns.equals(columns.slice(700, 10))


def test_class_folders_give_labels_and_ten_percent_is_held_out(tmp_path):
    for number in range(30):
        save(tmp_path / ("cat", "dog", "eel")[number % 3] / f"{number}.png", noise(number, 9, 7))
    source = open_source("folder", tmp_path)
    assert source.class_names == ("cat", "dog", "eel")
    assert source.splits() == {"train": 27, "test": 3}
    paths = set()
    for split in source.splits():
        images, where, columns = read(source, split)
        for image, place, label, path in zip(images, where, *columns.to_pydict().values(), strict=True):
            assert place == str(tmp_path / path)
            assert np.array_equal(image, noise(int(Path(path).stem), 9, 7))
            assert label == int(Path(path).stem) % 3
            paths.add(path)
    assert len(paths) == 30


def test_paths_are_shuffled_so_that_shards_are_mixed(tmp_path):
    for number in range(40):
        save(tmp_path / ("a", "b")[number // 20] / f"{number}.png", noise(number, 8, 8))
    labels = read(open_source("folder", tmp_path), "train")[2]["label"].to_pylist()
    assert 5 < sum(labels[:18]) < 13


def test_a_flat_folder_has_no_labels(tmp_path):
    for number in range(10):
        save(tmp_path / f"{number}.jpg", noise(number, 8, 8, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".thumbnails" / "1.png", noise(0, 8, 8))
    source = open_source("folder", tmp_path)
    assert source.class_names == ()
    assert source.columns == pa.schema([("path", pa.string())])
    assert source.splits() == {"train": 9, "test": 1}


def test_split_folders_are_kept_as_they_are(tmp_path):
    for number, place in enumerate(("train/x", "train/y", "valid/x", "test/y", "test/y")):
        save(tmp_path / place / f"{number}.png", noise(number, 8, 8))
    source = open_source("folder", tmp_path)
    assert source.splits() == {"train": 2, "val": 1, "test": 2}
    assert source.class_names == ("x", "y")
    assert read(source, "val")[2].to_pydict() == {"label": [0], "path": ["valid/x/2.png"]}
    assert read(source, "test")[2]["label"].to_pylist() == [1, 1]


def test_a_class_called_test_is_a_class_where_others_are_no_splits(tmp_path):
    for number, place in enumerate(("control", "test")):
        save(tmp_path / place / f"{number}.png", noise(number, 8, 8))
    assert open_source("folder", tmp_path).class_names == ("control", "test")


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png", noise(0, 8, 8))
    save(tmp_path / "2.png", noise(0, 8, 8))
    with pytest.raises(Mistake, match="beside"):
        open_source("folder", tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(Mistake, match=r"PATH is '.*': no images"):
        open_source("folder", tmp_path)
    with pytest.raises(Mistake, match=r"nowhere': there is no such folder"):
        open_source("folder", tmp_path / "nowhere")


PIXELS = noise(7, 20, 6, 5, 3)
ENCODED = [png(pixels) for pixels in PIXELS]
IMAGES = {
    "binary": pa.array(ENCODED, pa.binary()),
    "large_binary": pa.array(ENCODED, pa.large_binary()),
    "hugging_face": pa.array([{"bytes": data, "path": "a.png"} for data in ENCODED]),
    "tensor_hwc": pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS),
    "tensor_chw": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))),
    "lists": pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 5), 6)),
}
OTHERS = {
    "share": pa.array([*np.linspace(0, 1, 18), np.nan, None], pa.float32()),
    "when": pa.array(np.arange(20) * 1_000_000_007, pa.timestamp("ns", "UTC")),
    "kind": pa.array(["a", "b"] * 10).dictionary_encode(),
    "captions": pa.array([["one", "two"], None] * 10),
    "box": pa.array([{"x": 1, "y": 0.5}] * 20),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_parquet_images_of_every_kind_are_read_and_all_other_columns_kept(tmp_path, kind):
    table = pa.table({"photo": IMAGES[kind]} | OTHERS)
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=6)
    source = open_source("parquet", tmp_path)
    images, where, columns = read(source, "train")
    assert np.array_equal(images, PIXELS)
    assert where[13] == f"{tmp_path / 'train-00000-of-00001.parquet'}[13]"
    expected = table.drop_columns("photo").to_pydict()
    assert columns.schema.types == [OTHERS[name].type for name in columns.column_names]
    assert str(columns.to_pydict()) == str(expected)  # as text: NaN differs from itself


def test_parquet_rows_are_read_across_row_groups_and_files(tmp_path):
    for part in range(2):
        chosen = slice(part * 10, part * 10 + 10)
        table = pa.table({"image": ENCODED[chosen], "row": list(range(20))[chosen]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=3)
    source = open_source("parquet", tmp_path)
    assert source.splits() == {"train": 18, "test": 2}
    rows = []
    for split in source.splits():
        images, _, columns = read(source, split)
        assert np.array_equal(images, PIXELS[columns["row"].to_numpy()])
        rows += columns["row"].to_pylist()
    assert sorted(rows) == list(range(20))


def test_parquet_splits_are_named_by_their_files(tmp_path):
    for name in (
        "trainval-00000-of-00002",
        "trainval-00001-of-00002",
        "validation-00000-of-00001",
        "test",
        "odd-0-of-1",
    ):
        pq.write_table(pa.table({"image": ENCODED[:2]}), tmp_path / f"{name}.parquet")
    assert open_source("parquet", tmp_path).splits() == {"train": 4, "val": 2, "test": 2, "odd": 2}


def test_files_with_and_without_a_split_are_refused_together(tmp_path):
    for name in ("train-00000-of-00001", "more"):
        pq.write_table(pa.table({"image": ENCODED[:2]}), tmp_path / f"{name}.parquet")
    with pytest.raises(Mistake, match=r"train-00000-of-00001\.parquet names a split, more\.parquet does not"):
        open_source("parquet", tmp_path)


def test_one_of_several_image_columns_is_asked_for_and_taken(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"left": ENCODED, "right": ENCODED[::-1], "row": list(range(20))}), path)
    with pytest.raises(Mistake, match=r"columns left, right .*--column"):
        open_source("parquet", path)
    with pytest.raises(Mistake, match="--column is 'row'; expected one of left, right"):
        open_source("parquet", path, column="row")
    images, _, columns = read(open_source("parquet", path, column="right"), "train")
    assert columns.column_names == ["left", "row"]
    assert np.array_equal(images, PIXELS[::-1][columns["row"].to_numpy()])


def test_the_column_called_image_is_the_image(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"mask": ENCODED[::-1], "image": ENCODED}), path)
    assert open_source("parquet", path).columns.names == ["mask"]
    with pytest.raises(Mistake, match="another column is called that"):
        open_source("parquet", path, column="mask")


def test_parquet_without_images_names_its_columns(tmp_path):
    pq.write_table(pa.table({"caption": ["a"], "row": [1]}), tmp_path / "x.parquet")
    with pytest.raises(Mistake, match=r"no column of encoded images .*caption, row"):
        open_source("parquet", tmp_path)


def test_columns_without_pixels_are_no_images():
    assert decoder(pa.field("image", pa.list_(pa.float32(), 512))) is None
    assert decoder(pa.field("image", pa.list_(pa.uint8(), 512))) is None
    assert decoder(pa.field("image", pa.fixed_shape_tensor(pa.uint8(), (512,)))) is None
    assert decoder(pa.field("image", pa.fixed_shape_tensor(pa.float32(), (8, 8)))) is None
    assert decoder(pa.field("image", pa.struct([("bytes", pa.string())]))) is None


def test_hugging_face_class_names_are_kept(tmp_path):
    noted = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": ENCODED, "label": [0, 1] * 10})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(noted)}), tmp_path / "x.parquet")
    assert open_source("parquet", tmp_path).class_names == ("cat", "dog")


def test_parquet_that_is_none_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    for path in (tmp_path, tmp_path / "y.parquet"):
        with pytest.raises(Mistake, match="PATH is"):
            open_source("parquet", path)


def test_columns_that_contradict_each_other_are_refused(tmp_path):
    for name, label in (("train", [1]), ("test", ["one"])):
        pq.write_table(pa.table({"image": ENCODED[:1], "label": label}), tmp_path / f"{name}.parquet")
    with pytest.raises(Mistake, match="label"):
        open_source("parquet", tmp_path)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_or_not_without_writing_beside_it(tmp_path, packed):
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = noise(0, 6, 28, 28), noise(1, 6) % 10
    for name, rows in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        for kind, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            data, path = idx(array), raw / f"{name}-{kind}-ubyte"
            path.with_suffix(".gz" if packed else "").write_bytes(gzip.compress(data) if packed else data)
    before = sorted(raw.iterdir())
    raw.chmod(stat.S_IREAD | stat.S_IEXEC)
    try:
        source = open_source("kmnist", root=tmp_path)
        got = [read(source, split) for split in ("train", "test")]
    finally:
        raw.chmod(stat.S_IRWXU)
    assert sorted(raw.iterdir()) == before
    assert np.array_equal(np.concatenate([part[0] for part in got]), images)
    assert np.concatenate([part[2]["label"] for part in got]).tolist() == labels.tolist()
    assert source.class_names[:2] == ("o", "ki")


def test_fashion_mnist_is_read_where_it_lies():
    root = needs("FashionMNIST").parent
    source = open_source("fashion-mnist", root=root)
    assert source.splits() == {"train": 60000, "test": 10000}
    with gzip.open(root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte.gz") as stream:
        expected = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    (piece,) = source.rows("test", 9_000, 9_100)
    assert np.array_equal([np.asarray(picture.load()) for picture in piece.pictures], expected[9_000:9_100])
    assert piece.pictures[0].where == "test[9000]"
    assert piece.columns.schema == source.columns == pa.schema([("label", pa.int64())])


def test_a_root_without_the_set_is_named_and_nothing_is_downloaded_into_it(tmp_path):
    for name in TORCHVISION:
        with pytest.raises(Mistake, match=f"--root is '{tmp_path}': no readable {name} there"):
            open_source(name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "")
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # the discard port: nobody answers
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(Mistake, match=r"usps could not be downloaded into .*--root"):
        open_source("usps")


def test_an_unknown_source_is_told_its_nearest_name():
    with pytest.raises(Mistake, match=r"SOURCE is 'fasion-mnist'; did you mean 'fashion-mnist'\? .*digits, folder"):
        open_source("fasion-mnist")
    with pytest.raises(Mistake, match="SOURCE is 'zzz'; expected one of digits"):
        open_source("zzz")


def test_an_option_that_the_source_has_no_use_for_is_refused(tmp_path):
    with pytest.raises(Mistake, match="PATH is"):
        open_source("mnist", path=tmp_path)
    with pytest.raises(Mistake, match="--root is"):
        open_source("digits", root=tmp_path)
    with pytest.raises(Mistake, match="--column is"):
        open_source("folder", path=tmp_path, column="image")
    with pytest.raises(Mistake, match="PATH is missing"):
        open_source("parquet")


def pixels_of(source: Source) -> list[bytes]:
    return [image.tobytes() for image in read(source, "train")[0]]


def test_sources_travel_to_other_processes(tmp_path):
    for number in range(2):
        save(tmp_path / "folder" / f"{number}.png", PIXELS[number])
    pq.write_table(pa.table({"image": ENCODED}), tmp_path / "x.parquet")
    sources = [
        open_source("digits"),
        open_source("folder", tmp_path / "folder"),
        open_source("parquet", tmp_path / "x.parquet"),
    ]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert list(pool.map(pixels_of, sources)) == [pixels_of(source) for source in sources]


def test_the_shared_parquet_sets_open_as_they_are():
    pneumonia = open_source("parquet", needs("pneumonia_subset"))
    assert pneumonia.splits() == {"train": 2428, "val": 270, "test": 468}
    assert pneumonia.columns == pa.schema([("label", pa.int32())])
    boards = open_source("parquet", needs("deeppcb_patches64"))
    assert boards.splits() == {"train": 20619, "test": 9420}
    assert boards.columns.field("mask").type == pa.binary()
    nouns = open_source("parquet", needs("nouns"))
    assert nouns.splits() == {"train": 18000, "test": 2000, "factors": 4000}
    (piece,) = nouns.rows("factors", 21, 23)
    assert piece.columns.select(["background", "body", "head", "glasses"]).to_pylist() == [
        {"background": 0, "body": 0, "head": 2, "glasses": 1},
        {"background": 0, "body": 0, "head": 2, "glasses": 2},
    ]
    assert piece.columns["caption"].null_count == 2
