"""Disentanglement of synthetic codes with known answers. N images, Z units, K factors."""

from math import isnan, log

import numpy as np
import pytest

from pipeline.evaluation.factors import (
    Codes,
    Factors,
    dci,
    disentanglement,
    factor_vae_score,
    mutual_information_gap,
    separated_predictability,
)

LEVELS = (3, 5, 8, 10)
MIXED = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
"""A rotation that gives each unit an equal part of every factor."""


@pytest.fixture(scope="module")
def factors() -> Factors:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(level, size=3000) for level in LEVELS], 1)


@pytest.fixture(scope="module")
def perfect(factors: Factors) -> Codes:
    """A unit a factor, all of one variance, with a little noise as posterior means have it."""
    noise_NK = np.random.default_rng(1).normal(size=factors.shape)
    return (factors - factors.mean(0)) / factors.std(0) + 0.02 * noise_NK


def noise(count: int, units: int) -> Codes:
    return np.random.default_rng(2).normal(size=(count, units))


def test_a_perfect_code_scores_near_1_on_all(factors, perfect):
    scores = disentanglement(perfect[:, [2, 0, 3, 1]], factors)
    assert scores.keys() == {
        "mig",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "sap",
        "factor_vae",
    }
    assert min(scores.values()) > 0.95
    assert max(scores.values()) <= 1


def test_units_that_know_nothing_take_nothing_away(factors, perfect):
    scores = disentanglement(np.concatenate([noise(len(perfect), 6), perfect], 1), factors)
    assert min(scores.values()) > 0.95


def test_a_rotated_code_knows_as_much_and_keeps_nothing_apart(factors, perfect):
    scores = disentanglement(perfect @ MIXED, factors)
    assert scores.pop("dci_informativeness") > 0.7
    assert scores.pop("factor_vae") == pytest.approx(1 / 4, abs=0.1)  # chance
    assert max(scores.values()) < 0.05


def test_noise_knows_nothing(factors):
    scores = disentanglement(noise(len(factors), 6), factors)
    chance = np.mean([1 / level for level in LEVELS])
    assert scores.pop("dci_informativeness") == pytest.approx(chance, abs=0.03)
    assert scores.pop("factor_vae") == pytest.approx(1 / 4, abs=0.06)
    assert max(scores.values()) < 0.05


def test_the_vote_is_scored_on_groups_that_it_has_not_seen(factors):
    score = factor_vae_score(noise(len(factors), 60), factors, np.random.default_rng(3))
    assert score == pytest.approx(1 / 4, abs=0.06)


def test_rows_may_come_in_any_order(factors, perfect):
    sorted_N = factors[:, 3].argsort()
    assert min(disentanglement(perfect[sorted_N], factors[sorted_N]).values()) > 0.95


def test_a_collapsed_code_scores_nothing(factors):
    scores = disentanglement(1e-3 * noise(len(factors), 6), factors)
    assert scores["factor_vae"] == 0
    assert scores["mig"] < 0.05


def test_a_factor_told_twice_is_no_less_disentangled_but_less_complete(factors, perfect):
    twice_NZ = np.concatenate([perfect, perfect + 1e-3 * noise(*perfect.shape)], 1)
    scores = dci(twice_NZ, factors)
    assert scores["dci_disentanglement"] > 0.95
    assert scores["dci_completeness"] < 0.9
    assert mutual_information_gap(twice_NZ, factors) < 0.05
    assert separated_predictability(twice_NZ, factors) < 0.05


def test_a_unit_that_tells_two_factors_is_complete_and_not_disentangled(factors):
    """One unit for both: their values side by side as digits of one number."""
    both_NZ = np.stack([factors[:, 0] * 5.0 + factors[:, 1], noise(len(factors), 1)[:, 0]], 1)
    scores = dci(both_NZ, factors[:, :2])
    assert scores["dci_completeness"] > 0.95
    assert scores["dci_disentanglement"] < 0.05
    assert scores["dci_informativeness"] > 0.95


def test_the_gap_is_in_entropies_of_the_factor():
    """A unit that tells a fair coin's side with an error rate of 1/4, and one that knows nothing."""
    coin_N = np.repeat([0, 1], 4000)
    heard_N = coin_N ^ (np.arange(8000) % 4 == 0)
    codes_NZ = np.stack([heard_N, np.arange(8000) // 2 % 2], 1).astype(float)
    channel = 1 + 0.25 * log(0.25, 2) + 0.75 * log(0.75, 2)
    assert mutual_information_gap(codes_NZ, coin_N[:, None]) == pytest.approx(channel, rel=1e-9)


def test_thresholds_need_no_order_of_a_factors_values():
    shape_N = np.random.default_rng(0).integers(3, size=2000)
    codes_NZ = np.stack([np.array([1.0, -1.0, 0.0])[shape_N], noise(2000, 1)[:, 0]], 1)
    assert separated_predictability(codes_NZ, shape_N[:, None]) == pytest.approx(1, abs=0.1)


def test_a_rare_value_counts_as_much_as_a_common_one():
    """By the best threshold between N(0, 1 / 4) and N(1, 1 / 4), 2 Phi(1) - 1 above chance, however rare one is."""
    rare_N = (np.arange(20_000) % 20 == 0).astype(int)
    codes_NZ = np.stack([rare_N, np.zeros(20_000)], 1) + 0.5 * noise(20_000, 2)
    assert separated_predictability(codes_NZ, rare_N[:, None]) == pytest.approx(0.683, abs=0.05)


def test_the_vote_does_not_mind_the_scale_of_a_unit(factors, perfect):
    def score(codes_NZ: Codes) -> float:
        return factor_vae_score(codes_NZ, factors, np.random.default_rng(3))

    assert score(perfect * [1, 10, 100, 1000]) == score(perfect)


def test_scores_depend_on_the_seed_alone(factors, perfect):
    codes_NZ = perfect @ np.linalg.qr(noise(4, 4)).Q
    one = disentanglement(codes_NZ, factors, seed=1)
    np.random.default_rng().normal(size=5)
    assert disentanglement(codes_NZ, factors, seed=1) == one
    assert disentanglement(codes_NZ, factors, seed=2) != one


@pytest.mark.filterwarnings("error")
def test_values_that_only_one_half_has_are_no_trouble():
    rng = np.random.default_rng(0)
    factors_NK = np.stack([np.minimum(rng.geometric(0.05, 400), 300), rng.integers(2, size=400)], 1)
    assert 0 <= separated_predictability(rng.normal(size=(400, 3)), factors_NK) < 0.1


@pytest.mark.filterwarnings("error")
def test_values_that_only_the_training_half_has_are_no_trouble_either():
    rare_N = (np.arange(400) < 9).astype(int)
    assert separated_predictability(noise(400, 3), rare_N[:, None]) == 0


@pytest.mark.filterwarnings("error")
def test_codes_that_are_all_the_same_score_nothing(factors):
    scores = disentanglement(np.full((len(factors), 6), 0.3), factors)
    assert scores.pop("dci_informativeness") < 0.3
    assert set(scores.values()) == {0}


@pytest.mark.parametrize("ill", [np.nan, np.inf])
def test_codes_that_are_not_finite_have_scores_that_are_not(factors, perfect, ill):
    codes_NZ = perfect.copy()
    codes_NZ[7, 2] = ill
    scores = disentanglement(codes_NZ, factors)
    assert scores.keys() == disentanglement(perfect, factors).keys()
    assert all(map(isnan, scores.values()))
