"""The order of the data is a pure function of seed and position, whoever asks, however much memory there is."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import batches as feeding
from pipeline.data import manifest as manifests
from pipeline.data.batches import Feed, Images, Order, first_images, shards_of
from pipeline.errors import Mistake
from pipeline.ranks import Ranks

SHARDS = [50, 7, 30, 41, 12, 60]
ROWS = sum(SHARDS)
OWNER = np.repeat(np.arange(len(SHARDS)), SHARDS)
"""The shard of each row."""
ROOMY, TIGHT = 4096, 1
"""Megabytes that hold the digits at 32 px whole, and that don't."""


def order(seed: int = 3, window: int = 64, shards: list[int] = SHARDS) -> Order:
    return Order(shards, seed, window)


def feed(path: str, *, budget_mb: int, window: int = 150, batch: int = 96, ranks: Ranks | None = None) -> Feed:
    manifest = manifests.load(path)
    images = Images(path, manifest, "train", window, budget_mb)
    assert images.streamed == (budget_mb == TIGHT)
    rows = [shard.rows for shard in shards_of(manifest, "train")]
    return Feed(Order(rows, 5, window), images, batch, (ranks or Ranks()).share(batch))


@pytest.mark.parametrize("window", [1, 7, 64, ROWS, 10 * ROWS])
def test_every_epoch_is_a_permutation_of_all_rows(window):
    for epoch in range(3):
        assert sorted(order(window=window).ids(epoch * ROWS, ROWS)) == list(range(ROWS))


@pytest.mark.parametrize("window", [7, 64, ROWS])
def test_any_chopping_of_the_stream_gives_the_same_rows(window):
    whole = order(window=window).ids(0, 3 * ROWS)
    cuts = np.random.default_rng(0)
    for _ in range(20):
        chopped, position, pieces = order(window=window), 0, []
        while position < 3 * ROWS:
            count = min(int(cuts.integers(1, 90)), 3 * ROWS - position)
            pieces.append(chopped.ids(position, count))
            position += count
        assert np.array_equal(np.concatenate(pieces), whole)


def test_a_place_in_the_stream_does_not_depend_on_how_one_came_there():
    walked, positions = order(), np.random.default_rng(1).integers(0, 10 * ROWS, 50)
    for position in positions:
        assert np.array_equal(walked.ids(int(position), 40), order().ids(int(position), 40))


def test_other_seeds_and_other_epochs_have_other_orders():
    first = order(seed=3).ids(0, ROWS)
    assert not np.array_equal(first, order(seed=4).ids(0, ROWS))
    assert not np.array_equal(first, order(seed=3).ids(ROWS, ROWS))
    assert not np.array_equal(first, np.sort(first))


def test_other_seeds_and_other_epochs_have_other_orders_with_a_single_shard():
    first = order(shards=[ROWS]).ids(0, ROWS)
    assert not np.array_equal(first, order(shards=[ROWS], seed=4).ids(0, ROWS))
    assert not np.array_equal(first, order(shards=[ROWS]).ids(ROWS, ROWS))


def windows_of(epoch: int, window: int) -> list[np.ndarray]:
    starts = range(0, ROWS, window)
    return [order(window=window).ids(epoch * ROWS + at, min(window, ROWS - at)) for at in starts]


@pytest.mark.parametrize("window", [10, 64])
def test_a_window_holds_a_run_of_shards_and_shares_at_most_one_with_the_next(window):
    for epoch in range(5):
        held = [set(OWNER[rows].tolist()) for rows in windows_of(epoch, window)]
        assert all(len(one & next_) <= 1 for one, next_ in pairwise(held))
        left = [one - next_ for one, next_ in pairwise(held)]
        for number, gone in enumerate(left):  # a shard that was left does not come back
            assert not any(gone & later for later in held[number + 1 :])


def test_a_window_mixes_its_shards():
    """A batch of a window looks like the window, not like one shard after the other."""
    (rows,) = windows_of(0, ROWS)
    half = OWNER[rows[: ROWS // 2]]
    expected = np.array(SHARDS) / 2
    found = np.array([(half == shard).sum() for shard in range(len(SHARDS))])
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / 2) + 1).all()


def test_shards_come_in_another_sequence_each_epoch():
    sequences = {tuple(dict.fromkeys(OWNER[np.concatenate(windows_of(epoch, 1))].tolist())) for epoch in range(6)}
    assert len(sequences) > 1


def test_the_following_window_is_the_one_that_comes_next():
    for position in (0, 63, 64, 190, ROWS - 1, ROWS, 2 * ROWS - 5):
        epoch, offset = divmod(position, ROWS)
        start = epoch * ROWS + min((offset // 64 + 1) * 64, ROWS)
        count = min(64, ROWS - start % ROWS)
        assert np.array_equal(order().following_window(position), order().ids(start, count))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("budget_mb", [ROOMY, TIGHT])
def test_the_shares_of_all_ranks_are_the_whole_batch(shards, world, budget_mb):
    whole_ids, whole = feed(shards, budget_mb=ROOMY).at(1400)
    parts = [feed(shards, budget_mb=budget_mb, ranks=Ranks(rank, world)).at(1400) for rank in range(world)]
    assert all(np.array_equal(ids, whole_ids) for ids, _ in parts)
    assert torch.equal(torch.cat([images for _, images in parts]), whole)


def test_streaming_gives_the_rows_that_memory_gives_and_stays_within_its_budget(shards):
    memory, stream = feed(shards, budget_mb=ROOMY), feed(shards, budget_mb=TIGHT)
    most = 0
    for position in range(0, 2 * 1438, 96):  # across the end of an epoch
        (ids, expected), (streamed_ids, found) = memory.at(position), stream.at(position)
        assert np.array_equal(ids, streamed_ids)
        assert torch.equal(found, expected)
        held = sum(shard.result().nbytes for shard in stream._images._held.values())
        most = max(most, held)
    assert 2**19 < most <= TIGHT * 2**20 - 3 * 100 * 1024, "the rest is for reading a shard"


def test_a_row_is_the_image_at_that_place_of_the_split(shards, digits):
    everything = first_images(digits, manifests.load(digits), "train", 1438)
    for budget_mb in (ROOMY, TIGHT):
        ids, images = feed(shards, budget_mb=budget_mb).at(700)
        assert torch.equal(images, everything[torch.from_numpy(ids)])


def test_a_shard_is_read_once_for_each_window_that_it_lies_in(shards, monkeypatch):
    """Small batches touch few of a window's shards at a time; those that wait must not be dropped and read again."""
    reads: list[str] = []

    def counted(filesystem, folder, shard):
        reads.append(shard.path)
        return read(filesystem, folder, shard)

    read = feeding.read_shard
    monkeypatch.setattr(feeding, "read_shard", counted)
    stream = feed(shards, budget_mb=TIGHT, batch=2)
    needed = 0
    for start in range(0, 1438, 150):
        ids = stream._order.ids(start, min(150, 1438 - start))
        needed += len(np.unique(ids // 100))
    for position in range(0, 1438 - 2, 2):
        stream.at(position)
    upcoming = len(np.unique(stream._order.following_window(1430) // 100))
    assert len(reads) <= needed + upcoming


def test_a_window_too_large_for_the_budget_is_refused_with_both_numbers(shards):
    with pytest.raises(Mistake) as caught:
        feed(shards, budget_mb=TIGHT, window=163)
    assert str(caught.value) == (
        "data.budget_mb is 1: streaming with data.window 163 takes 2 MB a worker; raise the budget or lower the window"
    )
    feed(shards, budget_mb=TIGHT, window=162)


@pytest.fixture
def copied(shards: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copied"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_shard_with_one_flipped_bit_is_refused_by_name(copied):
    damage(copied / "train-00002.parquet")
    line = "copied/train-00002.parquet: its sha256 differs from the manifest's: damaged or replaced; prepare the data"
    with pytest.raises(Mistake, match=line):
        feed(str(copied), budget_mb=ROOMY)
    stream = feed(str(copied), budget_mb=TIGHT)
    with pytest.raises(Mistake, match=line):
        for position in range(0, 1438, 96):
            stream.at(position)


def test_a_missing_shard_is_refused_by_name(copied):
    (copied / "test-00001.parquet").unlink()
    manifest = manifests.load(str(copied))
    assert len(first_images(str(copied), manifest, "test", 100)) == 100
    with pytest.raises(Mistake, match=r"copied/test-00001\.parquet: .*; prepare the data again$") as caught:
        first_images(str(copied), manifest, "test", 101)
    assert "\n" not in str(caught.value)


def test_the_first_images_are_the_first_and_never_more_than_there_are(shards, digits):
    manifest = manifests.load(shards)
    everything = first_images(digits, manifests.load(digits), "test", 10_000)
    assert len(everything) == manifest.rows("test")
    for count in (1, 100, 101, 250):
        assert torch.equal(first_images(shards, manifest, "test", count), everything[:count])


def test_a_uri_reads_as_the_path_it_stands_for(shards):
    uri = Path(shards).as_uri()
    assert uri.startswith("file://")
    assert manifests.load(uri) == manifests.load(shards)
    for budget_mb in (ROOMY, TIGHT):
        (ids, images), (uri_ids, uri_images) = (feed(path, budget_mb=budget_mb).at(96) for path in (shards, uri))
        assert np.array_equal(ids, uri_ids)
        assert torch.equal(images, uri_images)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda read: read["splits"]["train"][0].update(rows=99), "does not match its own digest: it was edited"),
        (lambda read: read.update(shape=[1, 32, 31]), "does not match its own digest: it was edited"),
        (lambda read: read["splits"]["train"].pop(), "does not match its own digest: it was edited"),
        (lambda read: read.update(digest="0" * 64), "does not match its own digest: it was edited"),
        (lambda read: read.pop("shape"), "is not a manifest of ours (KeyError('shape'))"),
        (lambda read: read["splits"]["train"][0].update(more=1), "is not a manifest of ours ("),
    ],
)
def test_an_edited_manifest_is_refused(copied, edit, complaint):
    path = copied / "dataset.json"
    read = json.loads(path.read_text())
    edit(read)
    path.write_text(json.dumps(read))
    with pytest.raises(Mistake) as caught:
        manifests.load(str(copied))
    assert str(caught.value).startswith(f"{path} {complaint}")
    assert str(caught.value).endswith("; prepare the data again")


def test_half_a_manifest_is_refused(copied):
    path = copied / "dataset.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(Mistake, match=r"dataset\.json is damaged; prepare the data again$"):
        manifests.load(str(copied))


def test_what_a_data_set_was_prepared_from_is_no_part_of_its_digest(copied):
    path = copied / "dataset.json"
    read = json.loads(path.read_text())
    path.write_text(json.dumps(read | {"source": "elsewhere"}))
    assert manifests.load(str(copied)).digest == read["digest"]


@pytest.mark.parametrize("path", ["nowhere", "pyproject.toml", "nosuch://bucket/x", "file:///nowhere"])
def test_a_place_without_a_data_set_is_one_line_that_names_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text("")
    with pytest.raises(Mistake) as caught:
        manifests.load(path)
    assert str(caught.value).startswith(f"data.path is {path!r}: ")
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_answered_with_those_that_are(shards):
    with pytest.raises(Mistake, match="split 'valid' is not in the data set, which has train, test"):
        shards_of(manifests.load(shards), "valid")
