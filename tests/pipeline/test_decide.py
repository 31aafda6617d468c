"""A champion is replaced only by what is better than chance explains, healthy, and measured alike."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan

import pytest
import torch

from pipeline.evaluation.protocol import Evaluation, told
from pipeline.registry.decide import ANEW, Gate, Verdict, decide
from pipeline.settings import Decision
from tests.pipeline.small import FD, PROTOCOL, PSNR, evaluation
from vaegan.metrics.jackknife import jackknife
from vaegan.metrics.moments import Moments, frechet_distance

RULES = Decision()


def shut(verdict: Verdict) -> dict[str, Gate]:
    """The gates that the candidate did not pass."""
    return {gate.name: gate for gate in verdict.gates if not gate.passed}


@pytest.mark.parametrize(
    ("metric", "new", "old", "promoted"),
    [
        (FD, 1, 2, True),
        (FD, 2, 1, False),
        (FD, 1, 1, False),
        (PSNR, 2, 1, True),
        (PSNR, 1, 2, False),
        (PSNR, 1, 1, False),
    ],
)
def test_without_noise_better_goes_the_way_of_the_figure_and_a_draw_changes_nothing(metric, new, old, promoted):
    candidate, champion = (replace(evaluation(1.0), figures={FD: 1.0, PSNR: 1.0} | {metric: at}) for at in (new, old))
    verdict = decide(candidate, champion, metric, RULES)
    assert verdict.promote == promoted
    assert set(shut(verdict)) == (set() if promoted else {metric})


def test_a_gain_counts_from_three_times_the_noise_of_both_together():
    champion = evaluation(10.0, noise=0.3)
    within, beyond = (decide(evaluation(fd, noise=0.4), champion, FD, RULES) for fd in (8.51, 8.49))
    assert (within.promote, beyond.promote) == (False, True), "0.3 and 0.4 make 0.5"
    assert within.why == (
        f"{FD} is 8.51 against the champion's 10, better by 1.5, within 3 times the noise of the difference, 0.5: "
        f"measure both on more samples {ANEW}, or lower decision.noises"
    )
    assert "more than 3 times" in beyond.why


@pytest.mark.parametrize(
    ("key", "mine"),
    [("data", "e" * 64), ("split", "train"), ("images", 5000), ("seed", 1), ("extractor", "classifier")],
)
def test_figures_measured_otherwise_are_not_compared_and_both_ways_are_shown(key, mine):
    verdict = decide(evaluation(0.0, **{key: mine}), evaluation(9.0), FD, RULES)
    assert set(shut(verdict)) == {"protocol"}
    assert f"measured with {told({key: mine})}; the champion with {told({key: PROTOCOL[key]})}" in verdict.why


def test_floor_and_noise_belong_to_a_figure_and_do_not_make_it_another():
    candidate = evaluation(1.0, noise=0.2, floor=0.3)
    assert decide(candidate, evaluation(9.0, noise=0.1, floor=0.2, floor_samples=9), FD, RULES).promote


def test_a_flag_of_health_keeps_a_better_model_from_the_throne():
    ill = replace(evaluation(1.0), health=("posterior_collapse", "mode_collapse"))
    verdict = decide(ill, evaluation(9.0), FD, RULES)
    assert set(shut(verdict)) == {"health"}
    assert "posterior_collapse, mode_collapse" in verdict.why
    assert decide(evaluation(1.0), replace(evaluation(9.0), health=("nan",)), FD, RULES).promote, "the champion's own"


@pytest.mark.parametrize(("psnr", "promoted"), [(19.0, True), (18.99, False), (25.0, True)])
def test_samples_may_cost_reconstructions_one_decibel_and_no_more(psnr, promoted):
    verdict = decide(evaluation(1.0, psnr=psnr), evaluation(9.0, psnr=20.0), FD, RULES)
    assert verdict.promote == promoted
    assert set(shut(verdict)) == (set() if promoted else {PSNR})


@pytest.mark.parametrize("champion", [None, evaluation(9.0)])
def test_what_needs_no_comparison_is_asked_of_the_first_too(champion):
    few = evaluation(1.0, samples=999)
    assert "samples" in shut(decide(few, champion, FD, RULES))
    assert "999" in decide(few, None, FD, RULES).why and "1,000" in decide(few, None, FD, RULES).why
    assert set(shut(decide(replace(few, health=("nan",)), None, FD, RULES))) == {"samples", "health"}
    assert decide(evaluation(1.0), None, FD, RULES).why == "there is no champion yet"


@pytest.mark.parametrize("figures", [{}, {FD: float("nan")}, {FD: float("inf")}])
def test_the_first_champion_has_its_figure(figures):
    unknown = replace(evaluation(1.0), figures=figures)
    for champion in (None, evaluation(1.0)):
        verdict = decide(unknown, champion, FD, RULES)
        assert set(shut(verdict)) >= {FD} and FD in verdict.why and ANEW in verdict.why


@pytest.mark.parametrize("champion", [None, evaluation(9.0, images=3)])
def test_a_distance_to_a_handful_of_held_out_images_makes_no_champion(champion):
    verdict = decide(evaluation(1.0, images=3), champion, FD, RULES)
    assert set(shut(verdict)) == {"images"}
    assert "measured against 3 images, decision.images asks for 300" in verdict.why
    assert decide(evaluation(1.0, images=360), None, FD, RULES).promote, "the digits have no more"


@pytest.mark.parametrize(
    ("candidate", "remedy"),
    [
        (evaluation(1.0, samples=999), "draw them with --samples"),
        (evaluation(1.0, samples=999), "lower decision.samples"),
        (evaluation(1.0, images=3), "give a run more evaluation.images, or lower decision.images"),
        (evaluation(9.5), "train longer, or search other settings"),
        (evaluation(8.9, noise=1.0), "lower decision.noises"),
        (evaluation(1.0, seed=1), "measure one like the other with `vaegan evaluate`"),
        (replace(evaluation(1.0), figures={}), "measure the one that lacks it with `vaegan evaluate`"),
        (replace(evaluation(1.0), health=("nan",)), "register a checkpoint without"),
        (evaluation(1.0, psnr=1.0), "raise decision.psnr_loss"),
    ],
)
def test_a_gate_that_stays_shut_names_what_opens_it(candidate, remedy):
    assert remedy in decide(candidate, evaluation(9.0), FD, RULES).why


def test_what_is_not_known_promotes_nobody():
    known = evaluation(1.0)
    for lacking in (
        replace(known, figures={PSNR: 20.0}),
        replace(known, figures={FD: nan, PSNR: 20.0}),
        replace(known, protocols={name: how | {"noise": None} for name, how in known.protocols.items()}),
        replace(known, figures={FD: 1.0}),
        Evaluation(figures={}, protocols={}),
    ):
        other = evaluation(9.0)
        assert not decide(lacking, other, FD, RULES).promote
        assert not decide(replace(other, figures={FD: 0.0, PSNR: 99.0}), lacking, FD, RULES).promote


# --- chance -----------------------------------------------------------------------------------------------------------

COMPARISONS, PARTS = 20, 10
Draw = Callable[[random.Random, float], Evaluation]


def measured(chance: random.Random, truth: float) -> Evaluation:
    """A figure whose noise has deviation 1, and an estimate of that from 10 parts."""
    noise = (sum(chance.gauss() ** 2 for _ in range(PARTS - 1)) / (PARTS - 1)) ** 0.5
    return evaluation(truth + chance.gauss(), noise=noise)


def luckiest(chance: random.Random, truth: float) -> Evaluation:
    """Of 20 checkpoints that are equally good, the one whose figure came out lowest: what a run registers."""
    return min((measured(chance, truth) for _ in range(20)), key=lambda one: one.figures[FD])


def promotions(candidate: Draw, champion: Draw, gain: float, comparisons: int) -> int:
    """How many candidates win that are better by `gain` in truth, in deviations of the noise."""
    chance = random.Random(0)
    pairs = [(candidate(chance, 100.0 - gain), champion(chance, 100.0)) for _ in range(comparisons)]
    return sum(decide(one, other, FD, RULES).promote for one, other in pairs)


@pytest.mark.parametrize("draw", [measured, luckiest])
@pytest.mark.parametrize("loss", [0.1, 0.5, 1, 2, 5, 20])
def test_a_worse_candidate_never_becomes_champion(draw: Draw, loss: float):
    assert promotions(draw, draw, -loss, COMPARISONS) == 0


@pytest.mark.parametrize("draw", [measured, luckiest])
def test_a_clearly_better_one_always_does(draw: Draw):
    assert promotions(draw, draw, 10.0, COMPARISONS) == COMPARISONS


def test_of_equals_chance_promotes_one_in_a_hundred_at_most():
    assert promotions(measured, measured, 0.0, 4000) <= 40


def test_the_luck_of_being_chosen_is_worth_less_than_twice_the_noise():
    assert promotions(luckiest, measured, -2.0, 400) == 0


# --- the whole of it: figures of draws, their noise from the jackknife ------------------------------------------------


def distance(shift: float, generator: torch.Generator, real: Moments) -> Evaluation:
    """The Frechet distance of 2,000 draws of N(shift, 1) in 4 dimensions to those that `real` has seen, measured."""
    rows = (torch.randn(2000, 4, generator=generator) + shift).chunk(PARTS)

    def figure(kept: Sequence[int]) -> float:
        drawn = Moments(4)
        for part in kept:
            drawn.update(rows[part])
        return frechet_distance(real, drawn)

    return evaluation(figure(range(PARTS)), noise=jackknife(figure, PARTS))


@pytest.mark.parametrize(("worse", "better", "clearly"), [(0.11, 0.1, False), (0.32, 0.3, False), (0.5, 0.2, True)])
def test_nor_where_figures_and_their_noise_are_measured(worse: float, better: float, clearly: bool):
    """By its closed form the distance is 4 shift^2."""
    generator = torch.Generator().manual_seed(0)
    real = Moments(4)
    real.update(torch.randn(20_000, 4, generator=generator))
    for _ in range(COMPARISONS):
        one, other = distance(worse, generator, real), distance(better, generator, real)
        assert not decide(one, other, FD, RULES).promote
        assert decide(other, one, FD, RULES).promote or not clearly
