"""What a run does and tells: terms by name, steps in images, ends that are decided once and told in one line."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.data.loader import Chance
from pipeline.ranks import Ranks
from pipeline.training import checkpoints
from pipeline.training.health import first_not_finite
from tests.pipeline.small import Run, points, run, state_of, tiny, weights_of

PLAIN = {"objective.schedule": "plain"}
TERMS = {
    "plain": {
        "train/discriminator/real",
        "train/discriminator/samples",
        "train/discriminator/logit_real",
        "train/discriminator/logit_fake",
        "train/discriminator/gradient_norm",
        "train/generator/adversarial",
        "train/generator/gradient_norm",
        "train/autoencoder/reconstruction",
        "train/autoencoder/kl",
        "train/autoencoder/gradient_norm",
    },
    "joint": {
        "train/discriminator/real",
        "train/discriminator/samples",
        "train/discriminator/logit_real",
        "train/discriminator/logit_fake",
        "train/discriminator/gradient_norm",
        "train/autoencoder/reconstruction",
        "train/autoencoder/kl",
        "train/autoencoder/adversarial",
        "train/autoencoder/gradient_norm",
    },
}
PICTURES = ("samples", "reconstructions", "interpolations", "traversals", "units", "neighbours")
FIGURES = {"eval/fd_pca64/samples", "eval/fd_pca64/reconstructions", "eval/psnr/reconstructions"}


def curve(done: Run, key: str) -> dict[int, float]:
    return {
        event.step: float(str(event.body[key]))
        for event in done.events
        if event.kind == "metrics" and key in event.body
    }


@pytest.mark.parametrize("schedule", ["plain", "joint"])
def test_every_term_is_told_under_its_turn_at_images_seen(digits, tmp_path, schedule):
    done = run(tiny(digits, tmp_path, {"objective.schedule": schedule}))
    train = {key for key, _ in points(done.directory) if key.startswith("train/")}
    assert train == TERMS[schedule]
    for key in train | {"schedule/beta", "schedule/lambda", "speed/images_per_s"}:
        assert list(curve(done, key)) == [64, 128, 192, 256]
    for key in FIGURES:
        assert list(curve(done, key)) == [128, 256]
    assert all(math.isfinite(value) for key, _ in points(done.directory) for value in curve(done, key).values())


def test_a_point_is_the_mean_of_the_steps_since_the_last(digits, tmp_path):
    fine = run(tiny(digits, tmp_path / "fine", {"log_every": 32}))
    coarse = run(tiny(digits, tmp_path / "coarse", {"log_every": 128}))
    for key in TERMS["joint"]:
        each, means = curve(fine, key), curve(coarse, key)
        assert list(means) == [128, 256]
        for step in means:
            steps = [each[at] for at in range(step - 96, step + 32, 32)]
            assert means[step] == pytest.approx(sum(steps) / 4, rel=1e-12)


def test_schedules_are_told_as_they_rise(digits, tmp_path):
    done = run(tiny(digits, tmp_path, {"objective.beta": 4, "objective.beta_warmup": 128, "objective.lambda": 0.5}))
    assert curve(done, "schedule/beta") == {64: 2.0, 128: 4.0, 192: 4.0, 256: 4.0}
    assert set(curve(done, "schedule/lambda").values()) == {0.5}


def test_training_lowers_the_reconstruction_term(digits, tmp_path):
    done = run(tiny(digits, tmp_path, {"stop.images": 2000, "checkpoints.every": 2000}))
    told = list(curve(done, "train/autoencoder/reconstruction").values())
    assert told[-1] < 0.8 * told[0]


def test_a_checkpoint_is_reported_once_with_all_its_figures(digits, tmp_path):
    done = run(tiny(digits, tmp_path))
    assert [report["images_seen"] for report in done.reports] == [128, 256]
    for report, kept in zip(done.reports, checkpoints.listed(done.directory), strict=True):
        assert report == kept.figures | {"images_seen": kept.images_seen}
        assert report.keys() >= FIGURES | {"images_seen"}


def test_a_checkpoint_has_pictures_beside_it(digits, tmp_path):
    done = run(tiny(digits, tmp_path))
    told = [str(event.body["path"]) for event in done.events if event.kind == "picture"]
    assert told == [f"pictures/{key}-{s:09d}.png" for s in (128, 256) for key in PICTURES]
    assert sorted(told) == sorted(f"pictures/{path.name}" for path in (done.directory / "pictures").iterdir())


@pytest.mark.parametrize(("images", "seen"), [(1, 32), (256, 256), (257, 288)])
def test_a_run_ends_with_the_batch_that_reaches_its_images_and_saves_there(digits, tmp_path, images, seen):
    done = run(tiny(digits, tmp_path, {"stop.images": images, "checkpoints.every": 10_000, "log_every": 10_000}))
    assert done.ending == ("finished", f"{seen} images seen")
    assert done.kept == [seen]
    assert list(curve(done, "train/autoencoder/kl")) == [seen]


def test_a_run_that_gets_no_better_ends_a_checkpoint_after_its_patience_does(digits, tmp_path):
    standing_still = {"optimizers.autoencoder.lr": 1e-30, "optimizers.discriminator.lr": 1e-30}
    rules = {"checkpoints": {"every": 64, "metric": "eval/psnr/reconstructions"}, "stop": {"images": 10_000}}
    done = run(tiny(digits, tmp_path, rules | standing_still | {"stop.patience": 3}))
    assert done.ending == ("finished", "3 evaluations without a better eval/psnr/reconstructions")
    assert [report["images_seen"] for report in done.reports] == [64, 128, 192, 256, 320]
    assert len({report["eval/psnr/reconstructions"] for report in done.reports}) == 1


def test_patience_is_counted_across_a_resume(digits, tmp_path):
    rules = {
        "optimizers.autoencoder.lr": 1e-30,
        "optimizers.discriminator.lr": 1e-30,
        "checkpoints": {"every": 64, "metric": "eval/psnr/reconstructions"},
        "stop": {"images": 10_000, "patience": 3},
    }
    run(tiny(digits, tmp_path, rules | {"stop": {"images": 192}}))
    assert run(tiny(digits, tmp_path, rules)).kept == [64, 128, 192, 256, 320]


@pytest.mark.parametrize("metric", ["eval/psnr/reconstructions", "eval/fd_pca64/reconstructions"])
def test_a_run_that_gets_better_is_not_ended_by_patience(digits, tmp_path, metric):
    rules = {"checkpoints": {"every": 320, "metric": metric}, "stop": {"images": 960, "patience": 1}}
    done = run(tiny(digits, tmp_path, rules))
    assert done.ending == ("finished", "960 images seen")


def test_a_run_ends_when_its_minutes_do_with_a_checkpoint_of_all_it_did(digits, tmp_path):
    rules = {"stop": {"images": 10**9, "minutes": 1e-4}, "checkpoints.every": 10**9}
    done = run(tiny(digits, tmp_path, rules))
    assert done.ending == ("finished", "0.0001 minutes of training")
    (seen,) = done.kept
    assert seen < 100_000
    assert len(done.reports) == 1
    assert state_of(done.directory / f"images-{seen:09d}")["progress"]["seconds"] > 60 * 1e-4
    assert run(tiny(digits, tmp_path, rules)).kept == [seen]


def test_an_ended_run_ends_again_at_once_and_writes_no_point(digits, tmp_path):
    first = run(tiny(digits, tmp_path))
    told, weights = points(first.directory), weights_of(first.directory / "images-000000256")
    again = run(tiny(digits, tmp_path))
    assert again.ending == first.ending
    assert again.reports == first.reports[-1:], "a kill may have come between saving and telling"
    assert points(again.directory) == told
    assert weights_of(again.directory / "images-000000256") == weights


EXPLODING = {
    "optimizers.autoencoder.lr": 1e6,
    "optimizers.discriminator.lr": 1e6,
    "stop.images": 6400,
    "checkpoints.every": 32,
    "checkpoints.num_to_keep": 1000,
    "log_every": 32,
}
"""A learning rate at which a loss overflows after some steps."""


@pytest.fixture(scope="module")
def exploded(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return run(tiny(digits, tmp_path_factory.mktemp("home"), EXPLODING))


def test_a_loss_that_is_not_finite_ends_the_run_with_term_step_and_last_good_checkpoint(exploded):
    said = re.fullmatch(
        r"(train/\w+/\w+) is not finite in the step that ends at (\d+) images; the last good checkpoint is (.+)",
        exploded.ending.why,
    )
    assert said is not None, exploded.ending
    assert exploded.ending.kind == "diverged"
    assert said[1] in TERMS["joint"]
    step = int(said[2])
    assert said[3] == str(exploded.directory / f"images-{step - 32:09d}")
    assert exploded.kept == list(range(32, step, 32))
    assert max(event.step for event in exploded.events) < step


def test_the_step_named_is_the_first_bad_one_however_seldom_one_looks(digits, tmp_path, exploded):
    seldom = run(tiny(digits, tmp_path, EXPLODING | {"log_every": 6400, "checkpoints.every": 6400}))
    named = exploded.ending.why.partition(";")[0]
    assert seldom.ending == ("diverged", f"{named}; there is no checkpoint before it")
    assert seldom.kept == []
    assert points(seldom.directory) == []


def test_the_last_good_checkpoint_holds_finite_weights_and_finite_figures(exploded):
    for kept in checkpoints.listed(exploded.directory):
        autoencoder, _ = checkpoints.load_average(kept.path)
        assert all(bool(value.isfinite().all()) for value in autoencoder.state_dict().values())
        assert all(math.isfinite(figure) for figure in kept.figures.values())


def test_weights_that_the_last_step_before_a_checkpoint_ruined_are_not_saved(digits, tmp_path):
    """Every loss so far was finite; only the update that came after it was not."""
    rules = EXPLODING | {"optimizers.autoencoder.lr": 1e38, "optimizers.discriminator.lr": 1e-3}
    done = run(tiny(digits, tmp_path, rules))
    assert done.ending.kind == "diverged"
    assert done.kept == []


def test_the_first_bad_step_and_term_are_found():
    means = torch.zeros(4, 3)
    assert first_not_finite(["a", "b", "c"], means) is None
    means[3, 0], means[2, 1], means[2, 2] = math.nan, math.inf, math.nan
    assert first_not_finite(["a", "b", "c"], means) == (2, "b")
    means[1, 2] = -math.inf
    assert first_not_finite(["a", "b", "c"], means) == (1, "c")


@pytest.mark.parametrize("schedule", ["plain", "joint"])
def test_one_seed_is_one_run_bit_for_bit(digits, tmp_path, schedule):
    homes = [tmp_path / "one", tmp_path / "other"]
    one, other = (run(tiny(digits, home, {"objective.schedule": schedule})) for home in homes)
    for seen in (128, 256):
        paths = [done.directory / f"images-{seen:09d}" for done in (one, other)]
        assert weights_of(paths[0]) == weights_of(paths[1])
    assert one.reports == other.reports
    for key in TERMS[schedule]:
        assert curve(one, key) == curve(other, key)


def test_another_seed_is_another_run(digits, tmp_path):
    one, other = (run(tiny(digits, tmp_path, {"name": f"s{seed}", "seed": seed})) for seed in (0, 1))
    paths = [done.directory / "images-000000256" for done in (one, other)]
    assert weights_of(paths[0]) != weights_of(paths[1])
    assert len({state_of(path)["progress"]["order_digest"] for path in paths}) == 2


def test_neither_intervals_nor_memory_change_what_is_learned(shards, tmp_path):
    one = run(tiny(shards, tmp_path, {"name": "one", "data.window": 150}))
    rules = {"log_every": 32, "checkpoints.every": 32, "data.budget_mb": 1, "data.window": 150}
    other = run(tiny(shards, tmp_path, rules | {"name": "other"}))
    assert weights_of(one.directory / "images-000000256") == weights_of(other.directory / "images-000000256")


def test_a_resumed_run_writes_no_point_twice(digits, tmp_path):
    settings = tiny(digits, tmp_path, {"stop.images": 512})
    first = run(settings)
    told = first.events
    for seen in (384, 512):  # as if killed just before: points are told that the checkpoint has not seen
        shutil.rmtree(first.directory / f"images-{seen:09d}")
    again = run(settings)
    assert again.kept == [128, 256, 384, 512]
    found = points(again.directory)
    assert len(found) == len(set(found))
    assert _curves_and_pictures(again.events) == _curves_and_pictures(told)


def _curves_and_pictures(told):
    """But for the points of a start, which every start has."""
    events = [event for event in told if event.kind in {"metrics", "picture"}]
    return [event for event in events if not all(key.startswith("startup/") for key in event.body)]


def test_a_run_cut_off_between_checkpoint_and_journal_tells_its_figures_when_it_lives_them_again(digits, tmp_path):
    settings = tiny(digits, tmp_path)
    first = run(settings)
    journal = first.directory / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if set(json.loads(line)[3]) >= FIGURES)
    journal.write_text("".join(lines[:last]) + lines[last][:20])
    shutil.rmtree(first.directory / "images-000000256")
    again = run(settings)
    assert list(curve(again, "eval/psnr/reconstructions")) == [128, 256]
    assert list(curve(again, "train/autoencoder/kl")) == [64, 128, 192, 256]


def test_an_evaluation_that_a_kill_parted_from_the_journal_is_told_once(digits, tmp_path):
    """The kill comes between the journal and the evaluation's file: it is done again, first of all, and told once."""
    first = run(tiny(digits, tmp_path))
    (first.directory / "images-000000256" / "evaluation.json").unlink()
    again = run(tiny(digits, tmp_path, {"stop.images": 384}))
    told = [event.step for event in again.events if "eval/psnr/reconstructions" in event.body]
    assert told == [128, 256, 384]
    assert [report["images_seen"] for report in again.reports] == [256, 384]
    assert again.reports[0] == first.reports[-1]


def test_data_damaged_before_the_start_end_the_run_with_one_line(shards, tmp_path):
    copied = Path(shutil.copytree(shards, tmp_path / "copied"))
    (copied / "train-00003.parquet").write_bytes(b"")
    done = run(tiny(str(copied), tmp_path))
    assert done.ending.kind != "finished"
    assert "train-00003.parquet: its sha256 differs" in done.ending.why
    assert done.kept == []


def test_a_hasty_checkpoint_rule_is_warned_of_once(digits, tmp_path):
    done = run(tiny(digits, tmp_path, {"checkpoints.every": 32}))
    warnings = [str(event.body["text"]) for event in done.events if event.kind == "warning"]
    hasty = [text for text in warnings if text.startswith("checkpoints.every")]
    assert hasty == ["checkpoints.every is 32 images, less than 2 s: saving and evaluating take more than training"]


def drawn(seed: int, position: int, share: slice = slice(0, 12)) -> list[torch.Tensor]:
    noise, flips = Chance(seed, 12, 5, share, flip=True, slopes=(1, 2, 2)).at(position)
    assert flips is not None and noise.directions is not None
    return [noise.posterior_BZ, noise.prior_BZ, noise.directions, flips]


def test_the_chance_of_a_step_does_not_depend_on_how_many_share_it():
    whole = drawn(3, 640)
    for world in (2, 3, 4):
        parts = [drawn(3, 640, Ranks(rank, world).share(12)) for rank in range(world)]
        for name, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat(pieces), name)
    for other in (drawn(4, 640), drawn(3, 652)):
        for ours, theirs in zip(whole, other, strict=True):
            assert not torch.equal(ours, theirs)
    assert not torch.equal(whole[0], whole[1])
