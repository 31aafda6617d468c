"""How steps are computed is chosen once, by measurement, and stays with the run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from pipeline.ranks import Ranks
from pipeline.speed.ceiling import Ceilings
from pipeline.training import choice
from pipeline.training.choice import EVERY_WAY, chosen, precision_for
from tests.pipeline.small import run, tiny
from vaegan.execution import Execution, candidates

SHAPE = (1, 32, 32)
SLOW_BF16, FAST_BF16 = Ceilings(100.0, 120.0, 10.0), Ceilings(100.0, 200.0, 10.0)
EAGER, LAST = Execution(), Execution(channels_last=True)


def way_of(tmp_path: Path, ceilings: Ceilings = SLOW_BF16, name: str = "one", **compute: object) -> Execution:
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    settings = tiny("nowhere", tmp_path, {f"compute.{key}": value for key, value in compute.items()})
    return chosen(settings, directory, SHAPE, Ranks(), ceilings, lambda text: None)


def test_auto_is_bf16_where_the_device_does_it_well():
    assert precision_for("auto", SLOW_BF16) == "fp32"
    assert precision_for("auto", FAST_BF16) == "bf16"
    for ceilings in (SLOW_BF16, FAST_BF16):
        assert [precision_for(asked, ceilings) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_a_run_keeps_its_way_on_another_device(tmp_path):
    assert way_of(tmp_path, FAST_BF16, precision="auto").precision == "bf16"
    assert way_of(tmp_path, SLOW_BF16, precision="auto").precision == "bf16"
    assert way_of(tmp_path, SLOW_BF16, precision="auto", name="other").precision == "fp32"
    assert json.loads((tmp_path / "one" / "execution.json").read_text())["precision"] == "bf16"


def test_a_run_that_resumes_on_less_keeps_of_its_way_what_it_can(tmp_path):
    stored = Execution(precision="bf16", channels_last=True, compiled=True, captured=True)
    (tmp_path / "execution.json").write_text(json.dumps(asdict(stored)))
    settings = tiny("nowhere", tmp_path)
    for device, world, kept in (
        ("cuda", 1, stored),
        ("cuda", 2, replace(stored, captured=False)),
        ("cpu", 1, replace(stored, captured=False, compiled=False)),
    ):
        assert choice._possible(stored, Ranks(0, world, torch.device(device))) == kept
    assert chosen(settings, tmp_path, SHAPE, Ranks(), SLOW_BF16, lambda text: None) == kept
    assert json.loads((tmp_path / "execution.json").read_text()) == asdict(stored), "for when there is more again"


def test_every_way_has_a_number_that_ranks_can_tell_each_other():
    assert len(set(EVERY_WAY)) == len(EVERY_WAY) == 16
    for device in ("cpu", "cuda"):
        for ranks in (1, 2):
            assert set(candidates(torch.device(device), "bf16", ranks)) <= set(EVERY_WAY)


@pytest.fixture
def two_ways(monkeypatch: pytest.MonkeyPatch) -> dict[Execution, list[float]]:
    """Two candidates whose seconds a step are in the dictionary; taking one's time uses it up."""
    times = {EAGER: [0.02], LAST: [0.01]}
    monkeypatch.setattr(choice, "candidates", lambda *_: (EAGER, LAST))
    monkeypatch.setattr(choice, "_timed", lambda way, *_: times[way].pop())
    return times


def test_the_fastest_is_chosen_told_and_kept_for_siblings(tmp_path, two_ways):
    told: list[str] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        settings = tiny("nowhere", tmp_path, {"name": name})
        assert chosen(settings, tmp_path / name, SHAPE, Ranks(), SLOW_BF16, told.append) == LAST
    assert two_ways == {EAGER: [], LAST: []}, "each is measured once"
    assert told == ["steps are fp32 + channels_last: measured fp32 20.0 ms, fp32 + channels_last 10.0 ms"] * 2


def test_what_a_search_varies_is_not_measured_again(tmp_path, two_ways):
    assert way_of(tmp_path) == LAST
    (tmp_path / "two").mkdir()
    varied = {"objective.beta": 3.0, "objective.lambda": 0.1, "optimizers.autoencoder.lr": 1e-5, "seed": 4}
    settings = tiny("nowhere", tmp_path, varied)
    assert chosen(settings, tmp_path / "two", SHAPE, Ranks(), SLOW_BF16, lambda text: None) == LAST


def test_other_networks_are_measured_anew(tmp_path, two_ways):
    assert way_of(tmp_path) == LAST
    two_ways[EAGER].append(0.01)
    two_ways[LAST].append(0.02)
    assert way_of(tmp_path, name="two", accumulate=2) == EAGER


def test_a_way_that_does_not_work_here_is_told_and_not_chosen(tmp_path, two_ways, monkeypatch):
    told: list[str] = []
    two_ways[LAST].clear()
    settings = tiny("nowhere", tmp_path)
    assert chosen(settings, tmp_path, SHAPE, Ranks(), SLOW_BF16, told.append) == EAGER
    assert told[0] == "steps can't be fp32 + channels_last here: IndexError: pop from empty list"
    assert list(tmp_path.glob(".execution-*")) == [], "it may work for the next"


def test_the_time_of_a_step_is_measured_on_a_model_that_is_thrown_away(tmp_path):
    settings = tiny("nowhere", tmp_path)
    assert 0 < choice._timed(EAGER, settings, SHAPE, Ranks()) < 1


def test_a_run_in_parts_learns_what_a_plain_one_does(digits, tmp_path):
    plain = run(tiny(digits, tmp_path, {"name": "plain"}))
    parts = run(tiny(digits, tmp_path, {"name": "parts", "compute.accumulate": 4}))
    for ours, theirs in zip(parts.reports, plain.reports, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_run_in_bf16_learns(digits, tmp_path):
    half = run(tiny(digits, tmp_path, {"name": "half", "compute.precision": "bf16"}))
    whole = run(tiny(digits, tmp_path, {"name": "whole"}))
    for ours, theirs in zip(half.reports, whole.reports, strict=True):
        assert ours == pytest.approx(theirs, rel=0.05)
    assert half.reports != whole.reports
