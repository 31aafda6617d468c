"""Data parallelism changes nothing: two ranks are one process on the whole batch. X one image, Z latent."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.vaegan.small import CONV, JOINT, LARSEN, MLP, OPTIMIZERS, PLAIN
from tests.vaegan.two_ranks import GLOBAL_BATCH, Case, Trained, assert_two_ranks_equal_one, train
from vaegan import config
from vaegan.objective import rest
from vaegan.step import alone

SHAPE = (1, 32, 32)
RMSPROP = config.Optimizer(kind="rmsprop", lr=3e-4, momentum=0.0, decay=0.9)
LARSENS = config.Optimizers(autoencoder=RMSPROP, discriminator=RMSPROP, generator=RMSPROP)
LEARNED = config.Likelihood(variance="learned", std=0.3)
TOWARDS_D, TOWARDS_DECODER = config.Gate(equilibrium=0.76, margin=0.02), config.Gate(equilibrium=0.68, margin=0.01)

NORMED = replace(CONV, width=24)
UNNORMED = replace(CONV, norm="none")

PENALISED = replace(JOINT, penalty=0.05, judge_reconstructions=True)

CASES: list[Case] = [
    ("plain", MLP, replace(PLAIN, beta_warmup=20, lambda_warmup=30), OPTIMIZERS),
    ("plain, convolutions, learned variance", UNNORMED, replace(PLAIN, likelihood=LEARNED), OPTIMIZERS),
    ("larsen", NORMED, replace(LARSEN, feature_layer=2), LARSENS),
    ("penalty", UNNORMED, PENALISED, OPTIMIZERS),
    ("penalty, plain", MLP, replace(PENALISED, schedule="plain", judge_reconstructions=False), OPTIMIZERS),
    ("gate", MLP, replace(JOINT, gate=TOWARDS_DECODER), OPTIMIZERS),
    ("gate, plain", MLP, replace(PLAIN, gate=TOWARDS_D), OPTIMIZERS),
]


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    assert_two_ranks_equal_one(CASES, tmp_path, SHAPE)


def test_two_ranks_that_accumulate_equal_one_that_does_not(tmp_path: Path) -> None:
    assert_two_ranks_equal_one(CASES, tmp_path, SHAPE, parts=3)


def test_half_a_batch_without_averaging_is_not_the_whole() -> None:
    for case in CASES[:2]:
        whole, half = train(case, SHAPE), train(case, SHAPE, rank=0, ranks=2)
        assert not torch.allclose(whole["decoder.fc1.weight"], half["decoder.fc1.weight"], rtol=0, atol=1e-6), case[0]


def decisions(objective: config.Objective, trained: Trained, rows: slice) -> list[frozenset[str]]:
    """Who rests in each update, were these rows of the global batch all that is known."""
    assert objective.gate is not None
    terms = ({name: trained[f"{update}/discriminator/{name}"] for name in ("real", "samples")} for update in range(5))
    gated = (rest(objective.gate, {name: term[rows] for name, term in of.items()}, alone) for of in terms)
    return [frozenset(name for name, rests in of.items() if rests) for of in gated]


def test_the_gates_of_the_cases_would_part_the_ranks_if_each_decided_for_itself() -> None:
    agreed: set[frozenset[str]] = set()
    for case in CASES:
        if case[2].gate is not None:
            trained, half = train(case, SHAPE), GLOBAL_BATCH // 2
            assert decisions(case[2], trained, slice(half)) != decisions(case[2], trained, slice(half, None)), case[0]
            agreed |= set(decisions(case[2], trained, slice(None)))
    assert agreed == {frozenset(), frozenset({"discriminator"}), frozenset({"decoder"})}
