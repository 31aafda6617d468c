"""Trouble is named while it happens, and seen to where that can be done. Illnesses are provoked, nothing is faked."""

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.ranks import Ranks
from pipeline.settings import Health, Settings, dump, parse
from pipeline.training import checkpoints, health
from pipeline.training.loop import train
from pipeline.training.state import Progress
from tests.pipeline.illness import named, nan_at_step, warnings
from tests.pipeline.small import Run, run, state_of, tiny, weights_of
from tests.vaegan.two_ranks import Trained, on_two_ranks
from vaegan import config
from vaegan.objective import weights_at

RULES = Health(patience=100)
TERMS = {
    "discriminator/real": 0.4,
    "discriminator/samples": 0.6,
    "discriminator/logit_real": 1.0,
    "discriminator/logit_fake": -2.0,
    "discriminator/gradient_norm": 1.5,
    "autoencoder/kl": 8.0,
    "autoencoder/gradient_norm": 90.0,
}


# --- what shows -------------------------------------------------------------------------------------------------------


def test_every_sign_has_a_threshold_that_can_be_set_and_every_threshold_a_sign():
    thresholds = [field.name for field in fields(Health) if field.name not in {"mode", "patience", "hold"}]
    assert list(health.SIGNS) == thresholds


def test_readings_are_those_of_the_terms():
    assert health.readings(TERMS, 4, 1.0) == {
        "posterior_collapse": 2.0,
        "discriminator_saturation": 0.5,
        "discriminator_blindness": pytest.approx(math.log(2) - 0.5),
        "logit_gap": 3.0,
        "gradient_vanishing": 1.5,
        "gradient_explosion": 90.0,
    }


def test_a_gradient_that_vanishes_is_that_of_who_learns_from_the_game_alone():
    terms = TERMS | {"autoencoder/gradient_norm": 1e-5, "generator/gradient_norm": 0.5}
    assert health.readings(terms, 4, 1.0)["gradient_vanishing"] == 0.5


def test_nothing_is_held_against_a_discriminator_that_nobody_learns_from():
    assert health.readings(TERMS, 4, 0.0).keys() == {"posterior_collapse", "gradient_explosion"}


def test_evaluations_are_read_for_what_they_have():
    assert health.evaluated({"eval/psnr/reconstructions": 20.0}, 4) == {}
    figures = {
        "eval/active_units/latents": 1.0,
        "eval/class_coverage/samples": 0.7,
        "eval/diversity_pca64/samples": 0.2,
        "eval/diversity_pca64/reconstructions": 0.8,
    }
    assert health.evaluated(figures, 4) == {"active_units": 0.25, "mode_collapse": 0.25}
    assert health.evaluated(figures | {"eval/class_coverage/samples": 0.1}, 4)["mode_collapse"] == 0.1
    spaced = {"eval/spacing_pca64/samples": 0.1, "eval/spacing_pca64/reconstructions": 0.5}
    assert health.evaluated(figures | spaced, 4)["mode_collapse"] == 0.2
    assert health.evaluated({"eval/diversity_pca64/samples": 0.2, "eval/diversity_pca64/reconstructions": 0.0}, 4) == {}


@pytest.mark.parametrize("sign", health.SIGNS)
def test_a_sign_shows_once_it_has_been_bad_for_long_enough(sign):
    threshold = getattr(RULES, sign)
    bad, good = (threshold / 2, 2 * threshold)[:: 1 if health.SIGNS[sign].bad == "below" else -1]
    progress, shown = Progress(), []
    for number, value in enumerate((bad, bad, good, threshold, bad, bad, bad, bad, good, bad, bad, bad)):
        shown.append([finding.sign for finding in health.look({sign: value}, 50 * number, progress, RULES)])
        assert progress.standing == ([sign] if number in {6, 7, 11} else [])
    assert [number for number, signs in enumerate(shown) if signs == [sign]] == [6, 11], "told once"
    assert sum(map(len, shown)) == 2


def test_signs_that_are_read_at_other_times_are_counted_apart():
    progress = Progress()
    health.look({"active_units": 0.0}, 100, progress, RULES)
    for images_seen in (110, 160, 210):
        health.look({"posterior_collapse": 0.0}, images_seen, progress, RULES)
    assert progress.standing == ["posterior_collapse"]
    (finding,) = health.look({"active_units": 0.0}, 200, progress, RULES)
    assert finding.sign == "active_units"
    assert health.carried(progress) == ("active_units", "posterior_collapse")


def test_a_sign_is_told_with_its_value_its_threshold_its_meaning_and_a_remedy():
    (finding,) = health.look({"logit_gap": 123.4}, 100, Progress(bad_since={"logit_gap": 0}), RULES)
    means, remedy = health.SIGNS["logit_gap"].means, health.SIGNS["logit_gap"].remedy
    assert finding.text == f"logit_gap is 123, above health.logit_gap = 50: {means}; {remedy}"


def test_a_checkpoint_carries_what_showed_since_the_last_and_what_still_shows():
    progress = Progress(flags=["logit_gap"], standing=["posterior_collapse"], bad_since={"gradient_vanishing": 7})
    assert health.carried(progress) == ("logit_gap", "posterior_collapse")


# --- what is done -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "mode", "progress", "expected"),
    [
        ("discriminator_saturation", "warn", Progress(), "tell"),
        ("discriminator_saturation", "stop", Progress(), "end"),
        ("discriminator_saturation", "act", Progress(), "hold"),
        ("discriminator_saturation", "act", Progress(images_seen=100, held_until=100), "set back"),
        ("discriminator_saturation", "act", Progress(images_seen=99, held_until=100), "tell"),
        ("gradient_vanishing", "act", Progress(images_seen=99, held_until=100), "tell"),
        ("gradient_explosion", "act", Progress(images_seen=99, held_until=100), "set back"),
        ("discriminator_blindness", "act", Progress(), "set back"),
        ("discriminator_blindness", "stop", Progress(), "end"),
        ("gradient_vanishing", "act", Progress(), "set back"),
        ("gradient_vanishing", "act", Progress(set_back=3), "tell"),
        ("posterior_collapse", "act", Progress(), "tell"),
        ("not_finite", "warn", Progress(), "end"),
        ("not_finite", "act", Progress(set_back=2, held_until=100), "set back"),
        ("not_finite", "act", Progress(set_back=3), "end"),
    ],
)
def test_treatments(sign, mode, progress, expected):
    assert health.treatment(sign, progress, Health(mode=mode)) == expected


def test_a_resting_discriminator_has_no_rate_and_is_not_looked_at():
    every = [f"discriminator_{ill}" for ill in ("saturation", "blindness")] + ["logit_gap", "gradient_vanishing"]
    since = {"posterior_collapse": 60, "discriminator_saturation": 3}
    progress = Progress(images_seen=100, bad_since=dict.fromkeys(every, 7) | since, standing=every)
    assert health.hold(progress, Health(hold=50), 0.0) == "the discriminator rests for 50 images"
    weights, players = weights_at(config.Objective(beta=2, lambda_=3, penalty=1), 0), ("autoencoder", "discriminator")
    for seen, rate in ((100, 0.0), (149, 0.0), (150, 1.0)):
        progress.images_seen = seen
        rates = {"autoencoder": 1.0, "discriminator": rate}
        assert health.treated(weights, progress, players) == {"kl": 2, "adversarial": 3, "penalty": 1.5} | rates
    assert (progress.bad_since, progress.standing) == ({"posterior_collapse": 60}, [])
    readings = dict.fromkeys((*every, "posterior_collapse"), 0.0) | {"logit_gap": 99.0}
    impatient = replace(RULES, patience=0)
    for seen in (149, 150):  # all the steps that the reading at 150 is of were in the rest
        found = health.look(readings, seen, progress, impatient)
        assert [sign for sign, _ in found] == ["posterior_collapse"] * (seen == 149)
    assert {sign for sign, _ in health.look(readings, 151, progress, impatient)} == set(every)


def test_what_is_bad_about_the_discriminator_is_one_illness():
    progress = Progress(bad_since={"posterior_collapse": 10, "discriminator_blindness": 20, "gradient_vanishing": 30})
    assert health.onset("gradient_vanishing", progress) == 20
    assert health.onset("posterior_collapse", progress) == 10
    assert health.onset("not_finite", progress) is None


def test_an_illness_that_a_rest_did_not_help_began_before_the_rest_until_it_has_stayed_away():
    progress = Progress(images_seen=100, bad_since={"discriminator_saturation": 30, "logit_gap": 20})
    health.hold(progress, Health(hold=50), 0.0)
    ill, well = {"discriminator_saturation": 0.0, "gradient_explosion": 1.0}, {"discriminator_saturation": 1.0}
    for seen, found in ((160, ill), (170, well), (249, well), (250, ill), (260, ill)):
        health.look(found, seen, progress, RULES)
        assert health.onset("discriminator_saturation", progress) == 20
    health.look(well, 270, progress, RULES)
    assert health.onset("discriminator_saturation", progress) is None
    health.look(ill, 280, progress, RULES)
    assert health.onset("discriminator_saturation", progress) == 280
    health.slow("discriminator_saturation", progress, ())
    assert health.onset("discriminator_saturation", progress) is None


def test_rates_fall_with_every_set_back_and_only_of_who_is_to_blame():
    progress, players = Progress(), ("autoencoder", "discriminator")
    weights = weights_at(config.Objective(), 0)
    assert health.treated(weights, progress, players) == weights | {"autoencoder": 1.0, "discriminator": 1.0}
    health.slow("gradient_vanishing", progress, players)
    assert progress.rates == {"discriminator": 0.1}
    health.slow("not_finite", progress, players)
    assert progress.rates == {"autoencoder": 0.1, "discriminator": pytest.approx(0.01)}
    assert progress.set_back == 2


# --- runs -------------------------------------------------------------------------------------------------------------

BATCH = 32
LONG = {
    "log_every": 20 * BATCH,
    "checkpoints.every": 200 * BATCH,
    "stop.images": 800 * BATCH,
    "health.patience": 60 * BATCH,
}
STRONG_D = {"objective.lambda": 10, "optimizers.discriminator.lr": 0.1}
"""100 times the learning rate that is good for it."""


def signs_of(done: Run) -> list[tuple[str, ...]]:
    """Of each checkpoint."""
    return [kept.evaluation.health for kept in checkpoints.listed(done.directory) if kept.evaluation is not None]


def distances(done: Run) -> list[float]:
    return [report["eval/fd_pca64/samples"] for report in done.reports]


@pytest.fixture(scope="module")
def well(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return run(tiny(digits, tmp_path_factory.mktemp("home"), LONG | {"stop.images": 200 * BATCH}))


def test_a_run_that_is_well_is_told_nothing_and_is_the_same_run_in_every_mode(digits, tmp_path, well):
    assert named(well) == {}
    assert signs_of(well) == [()]
    changes = LONG | {"stop.images": 200 * BATCH}
    for mode in ("stop", "act"):
        other = run(tiny(digits, tmp_path / mode, changes | {"health.mode": mode}))
        assert other.ending == well.ending
        for seen in well.kept:
            paths = [done.directory / f"images-{seen:09d}" for done in (well, other)]
            assert weights_of(paths[0]) == weights_of(paths[1])


def test_every_sign_of_training_is_a_curve(well):
    curves = {key for event in well.events if event.kind == "metrics" for key in event.body}
    assert {f"health/{sign}" for sign in health.readings(TERMS, 1, 1.0)} <= curves


def test_a_collapsed_posterior_is_named(digits, tmp_path):
    done = run(tiny(digits, tmp_path, LONG | {"objective.beta": 1000, "stop.images": 200 * BATCH}))
    assert named(done)["posterior_collapse"] <= 100 * BATCH
    assert signs_of(done) == [("posterior_collapse",)]
    assert done.ending.kind == "finished"


def test_stop_ends_a_run_with_one_line(digits, tmp_path):
    done = run(tiny(digits, tmp_path, LONG | {"objective.beta": 1000, "health.mode": "stop"}))
    assert done.ending.kind == "diverged"
    assert re.fullmatch(r"posterior_collapse is \S+, below health\.posterior_collapse = 0\.01: .+; .+", done.ending.why)
    assert max(event.step for event in done.events) <= 100 * BATCH


def test_a_discriminator_that_learns_too_fast_is_named_and_acting_brings_the_distance_down(digits, tmp_path):
    ill = run(tiny(digits, tmp_path / "warn", LONG | STRONG_D))
    assert named(ill)["discriminator_blindness"] <= 300 * BATCH
    assert all("discriminator_blindness" in signs for signs in signs_of(ill)[1:])
    acts = {"health.mode": "act", "health.hold": 100 * BATCH}
    done = run(tiny(digits, tmp_path / "act", LONG | STRONG_D | acts))
    texts = [text for _, text in warnings(done)]
    assert any("Done: the discriminator rests for 3,200 images" in text for text in texts)
    assert any("Done: set back to the weights of the start; discriminator's learning rate is 0.1" in t for t in texts)
    assert signs_of(done)[-1] == ()
    assert sorted(distances(done)[1:], reverse=True) == distances(done)[1:], "falling since it was set back"
    assert distances(done)[-1] < 0.9 * distances(ill)[-1]


def test_a_run_is_set_back_to_before_its_illness_came_on(digits, tmp_path):
    often = LONG | {"checkpoints.every": 20 * BATCH, "checkpoints.num_to_keep": 1000, "health.mode": "act"}
    run(tiny(digits, tmp_path, often | {"objective.lambda": 10, "stop.images": 200 * BATCH}))
    done = run(tiny(digits, tmp_path, often | STRONG_D | {"health.hold": 20 * BATCH, "stop.images": 500 * BATCH}))
    images, text = next(found for found in warnings(done) if "Done: set back" in found[1])
    found = re.search(r"Done: set back to the weights of images-(\d+);", text)
    assert found is not None, text
    sight = {
        event.step: float(str(event.body["health/discriminator_blindness"]))
        for event in done.events
        if "health/discriminator_blindness" in event.body
    }
    assert sight[int(found[1])] > RULES.discriminator_blindness
    assert all(
        sight[at] < RULES.discriminator_blindness for at in range(int(found[1]) + 20 * BATCH, images, 20 * BATCH)
    )
    signs = {kept.images_seen: kept.evaluation.health for kept in checkpoints.listed(done.directory) if kept.evaluation}
    ill = [at for at in signs if int(found[1]) < at < images]
    assert ill and all(text.partition(" ")[0] in signs[at] for at in ill), "no later set-back goes there"


def test_a_nan_ends_a_run_and_is_named_with_its_step(digits, tmp_path):
    with nan_at_step(30, BATCH):
        done = run(tiny(digits, tmp_path, LONG))
    assert done.ending.kind == "diverged"
    assert f"is not finite in the step that ends at {30 * BATCH} images" in done.ending.why


SHORT = {
    "log_every": 10 * BATCH,
    "checkpoints.every": 20 * BATCH,
    "stop.images": 60 * BATCH,
    "health.patience": 20 * BATCH,
    "health.active_units": 0,  # so young an encoder has not learned to tell images apart
}


def test_acting_sets_a_run_with_a_nan_back_and_it_goes_on_slower(digits, tmp_path):
    with nan_at_step(33, BATCH):
        done = run(tiny(digits, tmp_path, SHORT | {"health.mode": "act"}))
    assert done.ending == ("finished", f"{60 * BATCH} images seen")
    ((_, text),) = warnings(done)
    assert "Done: set back to the weights of images-000000640; everyone's learning rate is 0.1 times" in text
    last = done.directory / f"images-{60 * BATCH:09d}"
    progress = state_of(last)["progress"]
    assert progress["rates"] == {"discriminator": 0.1, "autoencoder": 0.1}
    assert progress["averaged"] == 60 - 20, "the steps since that checkpoint up to the one that was set back are gone"
    autoencoder, _ = checkpoints.load_average(last)
    assert all(bool(value.isfinite().all()) for value in autoencoder.state_dict().values())
    assert signs_of(done) == [(), (), ()]


def test_a_run_with_a_nan_and_no_checkpoint_begins_afresh(digits, tmp_path):
    with nan_at_step(5, BATCH):
        done = run(tiny(digits, tmp_path, SHORT | {"health.mode": "act"}))
    ((_, text),) = warnings(done)
    assert "Done: set back to the weights of the start" in text
    progress = state_of(done.directory / f"images-{20 * BATCH:09d}")["progress"]
    assert progress["averaged"] == 10


def test_a_run_that_stays_ill_is_set_back_three_times_and_then_ends(digits, tmp_path):
    rates = {"optimizers.autoencoder.lr": 1e30, "optimizers.discriminator.lr": 1e30}
    done = run(tiny(digits, tmp_path, SHORT | rates | {"health.mode": "act"}))
    assert done.ending.kind == "diverged"
    assert len(warnings(done)) == health.SET_BACKS


SURE = SHORT | {"health.mode": "act", "health.hold": 20 * BATCH, "health.discriminator_saturation": 100}
"""Any discriminator counts as too sure."""


@pytest.mark.parametrize("also", [{"health.logit_gap": 0}, {"health.gradient_vanishing": 1e9}])
def test_two_signs_in_one_reading_are_one_rest(digits, tmp_path, also):
    done = run(tiny(digits, tmp_path, SURE | also))
    assert [(images // BATCH, "Done: the discriminator rests" in text) for images, text in warnings(done)] == [
        (30, True),
        (30, False),
    ]


def test_a_run_that_a_rest_did_not_help_goes_back_to_before_its_illness_even_if_killed_in_between(digits, tmp_path):
    often = {"checkpoints.every": 10 * BATCH, "checkpoints.num_to_keep": 1000}
    run(tiny(digits, tmp_path, SHORT | often | {"stop.images": 20 * BATCH}))
    for cut in (80, 120):  # 80: after the rest, before the treatment that follows it
        done = run(tiny(digits, tmp_path, SURE | often | {"stop.images": cut * BATCH}))
    steps = [(images // BATCH, text.partition("Done: ")[2]) for images, text in warnings(done)]
    assert steps[0] == (50, "the discriminator rests for 640 images")
    assert steps[1][0] == 100 and steps[1][1].startswith("set back to the weights of images-000000640;")


def judge_of(path: Path) -> dict[str, Tensor]:
    return {name: value for name, value in load_file(path / "model.safetensors").items() if "discriminator" in name}


def test_a_discriminator_that_rests_keeps_its_weights_and_a_resumed_run_its_rest(digits, tmp_path):
    changes = {"checkpoints.every": 10 * BATCH}
    whole = run(tiny(digits, tmp_path / "whole", SURE | changes))
    texts = [text.partition("Done: ")[2] for _, text in warnings(whole)]
    assert texts[0] == "the discriminator rests for 640 images"
    assert warnings(whole)[0][0] == 30 * BATCH
    saved = {seen // BATCH: judge_of(whole.directory / f"images-{seen:09d}") for seen in whole.kept}
    for before, after, rests in ((20, 30, False), (30, 40, True), (40, 50, True), (50, 60, False)):
        same = all(torch.equal(saved[before][name], saved[after][name]) for name in saved[before])
        assert same == rests, (before, after)
    cut = run(tiny(digits, tmp_path / "cut", SURE | changes))
    for seen in (50 * BATCH, 60 * BATCH):  # as if killed in the middle of the rest
        shutil.rmtree(cut.directory / f"images-{seen:09d}")
    again = run(tiny(digits, tmp_path / "cut", SURE | changes))
    for name in ("images-000001600", "images-000001920"):
        assert weights_of(again.directory / name) == weights_of(whole.directory / name)
        ours, theirs = (state_of(done.directory / name)["progress"] for done in (again, whole))
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert signs_of(again) == signs_of(whole)


def test_a_run_resumes_with_the_rates_it_was_set_back_to(digits, tmp_path):
    rules = SHORT | {"health.mode": "act"}
    with nan_at_step(25, BATCH):
        whole = run(tiny(digits, tmp_path / "whole", rules))
    with nan_at_step(25, BATCH):
        run(tiny(digits, tmp_path / "cut", rules | {"stop.images": 40 * BATCH}))
    again = run(tiny(digits, tmp_path / "cut", rules))
    assert again.kept == whole.kept
    name = f"images-{60 * BATCH:09d}"
    assert weights_of(again.directory / name) == weights_of(whole.directory / name)


def sick_on_one_rank(rank: int, tree: Mapping[str, object], directory: Path) -> list[Trained]:
    settings: Settings = parse(tree)
    with nan_at_step(33 if rank == 1 else 10**9, BATCH // 2):
        ending = train(settings, directory, Ranks(rank, 2), lambda report: None)
    assert ending.kind == "finished", ending
    return [{name: torch.tensor(list(text.encode())) for name, text in {"why": ending.why}.items()}]


def test_a_sign_that_one_rank_sees_is_acted_on_by_both(digits, tmp_path):
    settings = tiny(digits, tmp_path, SHORT | {"health.mode": "act"})
    directory = tmp_path / "tiny"
    directory.mkdir()
    first, second = on_two_ranks(sick_on_one_rank, tmp_path, dump(settings), directory)
    assert torch.equal(first[0]["why"], second[0]["why"])
    done = Run(None, directory, [])  # type: ignore[arg-type]
    assert [text.partition("Done: ")[2][:44] for _, text in warnings(done)] == [
        "set back to the weights of images-000000640;"
    ]
    assert done.kept == [20 * BATCH, 40 * BATCH, 60 * BATCH]
