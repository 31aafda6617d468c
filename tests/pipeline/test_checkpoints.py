"""A checkpoint is whole or not there, gives back every bit of a run, and is checked before it is used."""

import errno
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from tests.pipeline.small import Game, Run, game, points, run, state_of, tiny, weights_of

HALF, WHOLE = 1440, 2880
"""Images; an epoch of the digits ends at 1438."""
PSNR, FD = "eval/psnr/reconstructions", "eval/fd_pca64/samples"


def contents(played: Game) -> dict[str, torch.Tensor]:
    tensors = played.state.tensors()
    return {f"{file}/{key}": value.clone() for file, named in tensors.items() for key, value in named.items()}


def assert_same(one: Game, other: Game) -> None:
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert one.state.facts() == other.state.facts()


def saved(played: Game, directory: Path, figures: dict[str, float] | None = None) -> Path:
    path = checkpoints.write(directory, played.state.snapshot(), played.description)
    if figures is not None:
        checkpoints.write_evaluation(path, Evaluation(figures=figures, protocols={}))
    return path


@pytest.mark.parametrize("schedule", ["plain", "joint"])
@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_a_restored_run_is_the_saved_one_bit_for_bit_and_stays_so(tmp_path, schedule, kind):
    original, restored = game(0, schedule, kind), game(1, schedule, kind)
    original.play(5)
    progress = original.state.progress
    progress.seconds, progress.order_digest, progress.best, progress.evaluations_since_best = 1.5, "abc", 0.1, 2
    path = saved(original, tmp_path)
    assert any(not torch.equal(contents(original)[key], value) for key, value in contents(restored).items())
    checkpoints.restore(path, restored.state)
    assert_same(original, restored)
    assert len(original.state.tensors()) == (5 if schedule == "plain" else 4)
    for played in (original, restored):
        played.play(3)
    assert_same(original, restored)


class Halves(NamedTuple):
    uninterrupted: Run
    resumed: Run


@pytest.fixture(scope="module")
def halves(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    """The same run at one go, and in two."""
    torch.set_num_threads(1)
    homes = [tmp_path_factory.mktemp("home") for _ in range(2)]
    every = {"checkpoints.every": HALF, "log_every": 320, "stop.images": WHOLE}
    uninterrupted = run(tiny(digits, homes[0], every))
    first = run(tiny(digits, homes[1], every | {"stop.images": HALF}))
    assert (first.ending.kind, first.kept) == ("finished", [HALF])
    return Halves(uninterrupted, run(tiny(digits, homes[1], every)))


CONV = {"networks": {"family": "conv", "width": 8, "latent": 4, "norm": "group"}, "log_every": 32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_of_convolutions_does_too(digits, tmp_path, precision):
    """In fp32 weights lie channels last in memory, and their file does not: the optimiser's moments must follow."""
    every = CONV | {"compute.precision": precision, "checkpoints.every": 64}
    whole = run(tiny(digits, tmp_path / "whole", every | {"stop.images": 128}))
    run(tiny(digits, tmp_path / "halves", every | {"stop.images": 64}))
    halves = run(tiny(digits, tmp_path / "halves", every | {"stop.images": 128}))
    ours, theirs = (weights_of(one.directory / "images-000000128") for one in (whole, halves))
    assert ours == theirs


def test_a_resumed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(halves):
    ours, theirs = (one.directory / f"images-{WHOLE:09d}" for one in halves)
    assert weights_of(ours) == weights_of(theirs)
    one, other = state_of(ours), state_of(theirs)
    for state in (one, other):
        assert state["progress"].pop("seconds") > 0
    assert one == other
    assert halves.resumed.ending == halves.uninterrupted.ending


def test_a_resumed_run_saw_the_same_images_in_the_same_order(halves):
    digests = [
        state_of(one.directory / f"images-{seen:09d}")["progress"]["order_digest"]
        for one in halves
        for seen in (HALF, WHOLE)
    ]
    assert digests[:2] == digests[2:]
    assert len(set(digests[:2])) == 2


def test_a_resumed_run_keeps_the_time_it_has_spent(halves):
    first, second = (
        state_of(halves.resumed.directory / f"images-{seen:09d}")["progress"]["seconds"] for seen in (HALF, WHOLE)
    )
    assert second > first > 0


def test_there_is_no_pickle_in_any_file(halves):
    files = [file for one in halves for file in one.directory.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jsonl", ".png"}
    for file in files:
        data = file.read_bytes()
        match file.suffix:
            case ".safetensors":
                size = int.from_bytes(data[:8], "little")
                header = json.loads(data[8 : 8 + size])
                assert 8 + size + max(one["data_offsets"][1] for one in header.values()) == len(data)
            case ".json":
                json.loads(data)
            case ".jsonl":
                assert all(json.loads(line) for line in data.splitlines())
            case _:
                assert data.startswith(b"\x89PNG")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, alter, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "average.safetensors", "optimizer-autoencoder.safetensors", "state.json"]
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, harm):
    path = saved(game(), tmp_path)
    checkpoints.verify(path)
    harm(path / name)
    for use in (checkpoints.verify, checkpoints.load_average):
        with pytest.raises(Mistake) as caught:
            use(path)
        assert str(caught.value) == f"{path / name} is damaged: its size or sha256 differs from manifest.json"


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [halve, Path.unlink])
def test_a_folder_without_its_manifest_is_no_checkpoint(tmp_path, harm):
    path = saved(game(), tmp_path)
    harm(path / "manifest.json")
    with pytest.raises(Mistake, match=r"images-000000000 is not a checkpoint: it has no readable manifest\.json$"):
        checkpoints.verify(path)
    assert checkpoints.newest_whole(tmp_path)[0] is None


@pytest.mark.parametrize("harm", [truncate, alter])
def test_a_run_goes_on_from_the_next_older_checkpoint_and_says_which_was_damaged(digits, tmp_path, harm):
    settings = tiny(digits, tmp_path)
    first = run(settings)
    told, whole = len(first.events), weights_of(first.directory / "images-000000256")
    harm(first.directory / "images-000000256" / "model.safetensors")
    again = run(settings)
    assert again.ending.kind == "finished"
    later = again.events[told:]
    warnings = [str(event.body["text"]) for event in later if event.kind == "warning"]
    assert "images-000000256/model.safetensors is damaged" in warnings[0]
    assert [event.body["text"] for event in later if event.kind == "note"] == ["1 workers, from images-000000128"]
    assert weights_of(again.directory / "images-000000256") == whole
    checkpoints.verify(again.directory / "images-000000256")


def test_a_run_whose_checkpoints_are_all_damaged_starts_again(digits, tmp_path):
    settings = tiny(digits, tmp_path)
    first = run(settings)
    whole = weights_of(first.directory / "images-000000256")
    for seen in first.kept:
        truncate(first.directory / f"images-{seen:09d}" / "state.json")
    again = run(settings)
    assert sum(event.kind == "warning" and "damaged" in str(event.body["text"]) for event in again.events) == 2
    assert weights_of(again.directory / "images-000000256") == whole


def full_at(third: int) -> Callable[..., None]:
    calls = iter(range(1, 100))

    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if next(calls) == third:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    return save


def test_a_write_that_fails_leaves_nothing_behind_and_ends_the_run_with_one_line(digits, tmp_path, monkeypatch):
    first = run(tiny(digits, tmp_path))
    monkeypatch.setattr(checkpoints, "save_file", full_at(3))
    settings = tiny(digits, tmp_path, {"stop.images": 512})
    again = run(settings)
    directory = first.directory
    assert again.ending == (
        "failed",
        f"could not write to {directory}: No space left on device; mend it and run the same command again",
    )
    assert sorted(path.name for path in directory.iterdir()) == [
        "execution.json",
        "images-000000128",
        "images-000000256",
        "journal.jsonl",
        "pictures",
    ]
    assert again.reports == first.reports[-1:], "what was saved may be told again, what was not is not told"
    assert checkpoints.newest_whole(directory) == (directory / "images-000000256", [])
    monkeypatch.undo()
    assert run(settings).kept == [128, 256, 384, 512]


@pytest.mark.parametrize("limit", [900, 20_000, 150_000])
def test_a_disk_that_takes_no_more_ends_the_run_with_one_line(digits, tmp_path, limit):
    """No twin: the kernel refuses to let any file grow beyond so many bytes, the journal or the weights."""
    settings = tiny(digits, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        failed = run(settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.ending.kind == "failed"
    assert str(failed.directory) in failed.ending.why
    assert "\n" not in failed.ending.why
    assert failed.kept == []
    again = run(settings)
    assert again.kept == [128, 256]
    told = [point for point in points(again.directory) if not point[0].startswith(("speed/", "startup/"))]
    assert len(set(told)) == len(told) == 2 * (14 + 2 * 17)


def test_a_write_cut_off_by_a_kill_is_cleared_away_by_the_next(digits, tmp_path):
    left = tmp_path / "tiny" / ".images-000000128.writing"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    done = run(tiny(digits, tmp_path))
    assert done.kept == [128, 256]
    assert not left.exists()


def listed(*figures: float | None, metric: str = FD) -> list[Checkpoint]:
    """None: not evaluated."""
    evaluations = [None if one is None else Evaluation(figures={metric: one}, protocols={}) for one in figures]
    return [Checkpoint(Path(f"images-{seen:09d}"), seen, one) for seen, one in enumerate(evaluations)]


@pytest.mark.parametrize(
    ("figures", "keep", "metric", "gone"),
    [
        ([5, 4, 3, 2], 2, FD, {0, 1}),
        ([2, 3, 4, 5], 2, FD, {2}),
        ([2, 3, 4, 5], 2, PSNR, {0, 1}),
        ([5, 4, 3, 2], 2, PSNR, {2}),
        ([1, 9, 2, 8, 5], 1, FD, {1, 2, 3}),
        ([1, 9, 2, 8, 5], 1, PSNR, {0, 2, 3}),
        ([3, 3, 3, 3], 1, FD, {1, 2}),
        ([1, 2], 2, FD, set()),
        ([], 2, FD, set()),
        ([9, None, 1, None, 8], 1, FD, {0}),
        ([9, None, 1, None, 8], 1, PSNR, {2}),
    ],
)
def test_the_newest_the_best_and_the_unevaluated_are_kept(figures, keep, metric, gone):
    assert {one.images_seen for one in checkpoints.surplus(listed(*figures, metric=metric), keep, metric)} == gone


def test_a_run_that_may_be_set_back_keeps_one_from_before_whatever_may_be_coming_on():
    every = listed(1.0, 2.0, 3.0, 4.0, 0.5, 9.0, metric=FD)
    seen = [one.images_seen for one in every]
    assert gone(every, behind=None) == set(seen[1:4]), "the two best and the newest stay"
    assert gone(every, behind=seen[-1] - seen[2]) == {seen[1], seen[3]}
    every[2] = every[2]._replace(evaluation=Evaluation(figures={FD: 3.0}, protocols={}, health=("logit_gap",)))
    assert gone(every, behind=seen[-1] - seen[2]) == set(seen[2:4]), "one that is ill is none to go back to"
    assert gone(every, behind=10 * seen[-1]) == set(seen[1:4]), "while none is far enough behind, the oldest"


def gone(every: list[Checkpoint], behind: int | None) -> set[int]:
    return {one.images_seen for one in checkpoints.surplus(every, 2, FD, behind)}


@pytest.mark.parametrize("metric", [FD, PSNR])
def test_a_run_keeps_its_newest_and_its_best_on_disk(digits, tmp_path, metric):
    rules = {"checkpoints": {"every": 64, "num_to_keep": 1, "metric": metric}, "stop.images": 512}
    done = run(tiny(digits, tmp_path, rules))
    figures = {int(report["images_seen"]): report[metric] for report in done.reports}
    assert len(figures) == 8
    best = (max if metric == PSNR else min)(figures, key=lambda seen: figures[seen])
    assert done.kept == sorted({best, 512})
    assert [one.figures[metric] for one in checkpoints.listed(done.directory)] == [figures[seen] for seen in done.kept]


@pytest.mark.parametrize("metric", [FD, PSNR])
def test_what_is_not_evaluated_ranks_last(metric):
    assert [one.images_seen for one in checkpoints.ranked(listed(None, 7, None, 7, metric=metric), metric)] == [
        1,
        3,
        0,
        2,
    ]


def test_an_evaluation_belongs_to_one_checkpoint_and_does_not_change_it(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = (saved(game(seed), tmp_path / name) for seed, name in enumerate("ab"))
    before = checkpoints.digest(one)
    found = Evaluation(figures={FD: 0.1 + 0.2}, protocols={FD: {"images": 10, "floor": None}})
    checkpoints.write_evaluation(one, found)
    assert checkpoints.evaluation_of(one) == found
    checkpoints.verify(one)
    assert checkpoints.digest(one) == before
    assert checkpoints.evaluation_of(other) is None
    shutil.copy(one / "evaluation.json", other)
    assert checkpoints.evaluation_of(other) is None
    halve(one / "evaluation.json")
    assert checkpoints.evaluation_of(one) is None


@pytest.mark.parametrize("text", ["{}", "null", "[]", "", "7"])
def test_what_is_no_evaluation_counts_as_none(tmp_path, text):
    path = saved(game(), tmp_path)
    (path / "evaluation.json").write_text(text)
    assert checkpoints.evaluation_of(path) is None


def test_what_is_pruned_was_never_half_there(tmp_path):
    for seen, figure in ((1, 1.0), (2, 5.0), (3, 4.0)):
        played = game()
        played.state.progress.images_seen = seen
        saved(played, tmp_path, {FD: figure})
    checkpoints.prune(tmp_path, 1, FD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000001", "images-000000003"]


def test_the_newest_is_the_newest_beyond_a_thousand_million_images(tmp_path):
    for seen in (999_999_936, 1_000_000_000):
        played = game()
        played.state.progress.images_seen = seen
        saved(played, tmp_path, {FD: 1.0})
    path, _ = checkpoints.newest_whole(tmp_path)
    assert path is not None
    assert path.name == "images-1000000000"
    assert [one.images_seen for one in checkpoints.listed(tmp_path)] == [999_999_936, 1_000_000_000]


def test_what_is_loaded_is_the_average_and_not_the_newest_weights(tmp_path):
    played = game()
    played.play(10)
    loaded, description = checkpoints.load_average(saved(played, tmp_path))
    expected, newest = played.state.average.module.state_dict(), played.state.model.autoencoder.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert not all(torch.equal(value, newest[key]) for key, value in loaded.state_dict().items())
    assert description == played.description
    assert not loaded.training


def test_the_digest_of_a_checkpoint_changes_with_any_bit_of_it(tmp_path):
    one, other = game(0), game(0)
    paths = []
    for name, played in (("one", one), ("same", game(0)), ("other", other)):
        (tmp_path / name).mkdir()
        if name == "other":
            next(played.state.model.parameters()).data[0, 0] += 1e-6
        paths.append(saved(played, tmp_path / name))
    digests = [checkpoints.digest(path) for path in paths]
    assert digests[0] == digests[1] != digests[2]
    assert load_file(paths[0] / "model.safetensors").keys() == one.state.model.state_dict().keys()
