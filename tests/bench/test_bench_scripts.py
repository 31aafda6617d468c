"""The benchmarks run, and their tables hold numbers. What the numbers are is for `make bench`."""

import re
from collections.abc import Iterator
from math import isfinite

import pytest
import torch

from pipeline.settings import merge, parse, read_tree
from tests.bench import data_path, evaluation, growth, quality, recipes, two_workers
from tests.bench.common import alternating, spread, table
from tests.bench.sets import blots
from tests.bench.trainee import trained


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def numbers(printed: str, title: str) -> list[list[float]]:
    """Of each row of the table under a title, the numbers of those cells that hold nothing but numbers."""
    _, found, below = printed.partition(f"\n{title}\n\n")
    assert found, printed
    lines = [line for line in below.partition("\n\n")[0].splitlines() if line.startswith("|")]
    return [[value for cell in line.strip("|").split("|") for value in numbers_of(cell)] for line in lines[2:]]


def numbers_of(cell: str) -> list[float]:
    if re.search(r"[a-z]", cell.replace("nan", "").replace("inf", "")):
        return []
    return [float(text.replace(",", "")) for text in re.findall(r"nan|inf|-?[\d,]+(?:\.\d+)?", cell)]


def test_the_reader_of_tables_sees_what_is_not_a_number():
    assert numbers_of(" 1,234.5 (-1..nan) ") == [1234.5, -1.0, pytest.approx(float("nan"), nan_ok=True)]


def test_variants_take_turns_and_their_first_round_does_not_count():
    calls: list[str] = []
    found = alternating({name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}, 2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert spread([3.0, 1.0, 2.0]) == "2 (1..3)"


def test_data_path_against_step(tmp_path, capsys):
    data_path.against_steps(tmp_path, data_path.QUICK, 1)
    rows = numbers(capsys.readouterr().out, "Data path against step")
    assert len(rows) == 8
    assert all(len(row) >= 4 and all(isfinite(number) and number > 0 for number in row) for row in rows)


def test_growth_with_the_batch(tmp_path, capsys):
    growth.main(["batch", "--quick", "--out", str(tmp_path)])
    rows = numbers(capsys.readouterr().out, "Growth: batch")
    assert [row[0] for row in rows] == [8, 16, 32]
    assert all(isfinite(number) and number > 0 for row in rows for number in row)
    assert (tmp_path / "batch.png").stat().st_size > 1000


def test_an_exponent_is_1_where_time_is_linear_and_0_where_it_is_flat():
    seconds = growth.Axes("runs", "seconds", lambda x, y: y, float)
    rates = growth.Axes("batch", "images/s", lambda x, y: x / y, lambda x: 1)
    assert growth.exponent(seconds, {x: [3.0 * x] for x in (1, 10, 100)}) == pytest.approx(1)
    assert growth.exponent(seconds, {x: [3.0] for x in (1, 10, 100)}) == pytest.approx(0)
    assert growth.exponent(rates, {x: [50.0] for x in (1, 10, 100)}) == pytest.approx(1)
    assert growth.exponent(rates, {x: [50.0 * x] for x in (1, 10, 100)}) == pytest.approx(0)


def test_quality_shows_what_lacks_a_figure_as_a_gap(capsys):
    figures = dict.fromkeys(quality.COLUMNS.values(), 2.0) | {f"floor {quality.DISTANCE}": 0.5}
    found = {"ours": [figures, figures], "GAN": [{quality.DISTANCE: 3.0}]}
    table("Quality", ["", *quality.COLUMNS], quality.rows_of(found))
    floor, ours, gan = numbers(capsys.readouterr().out, "Quality")
    assert floor == [0.5]
    assert ours == [2.0] * 3 * len(quality.COLUMNS)
    assert gan == [3.0]


@pytest.mark.parametrize("one", quality.CONTESTANTS, ids=lambda one: one.name)
def test_every_contestant_has_a_recipe(one, tmp_path):
    recipe = parse(merge(quality.recipe_of(one, "fashion-mnist"), {"name": "a", "data": {"path": "b"}}))
    assert recipe.networks == parse(merge(read_tree("fashion-mnist"), {"name": "a"})).networks


@pytest.fixture(scope="module")
def eight_blots(tmp_path_factory) -> str:
    return blots(tmp_path_factory.mktemp("blots"), 8, 1, 32, held_out=2)


@pytest.mark.parametrize("variant", recipes.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_trains(variant, eight_blots):
    small = {
        "networks": {"width": 8, "latent": 4},
        "data": {"path": eight_blots, "batch": 4},
        "stop": {"images": 128},
        "objective": dict(variant.settings),
    }
    settings = parse(merge(read_tree("fashion-mnist"), small))
    autoencoder = trained(settings, change=variant.turns, prepared=variant.prepared)
    assert all(weights.isfinite().all() for weights in autoencoder.state_dict().values())


def test_a_ring_costs_nothing_alone_and_twice_the_bytes_at_last():
    assert two_workers.all_reduce_s(1, 1e9, 4) == 0
    assert two_workers.all_reduce_s(2, 450e9, 0) == pytest.approx(1)
    assert two_workers.all_reduce_s(1024, 50e9, 0) == pytest.approx(2, rel=1e-2)


@pytest.mark.slow
@pytest.mark.cluster
def test_two_workers(capsys):
    two_workers.main(["--quick"])
    rows = numbers(capsys.readouterr().out, "Two workers of one thread")
    assert len(rows) == 2 * 7
    assert all(len(row) == 6 and all(isfinite(number) and number > 0 for number in row) for row in rows)


@pytest.mark.slow
@pytest.mark.cluster
def test_evaluation(capsys):
    evaluation.main(["--quick"])
    printed = capsys.readouterr().out
    rows = numbers(printed, "Training with evaluations (target: beside training at least 0.95)")
    assert len(rows) == 3
    assert all(len(row) == 6 and all(isfinite(number) and number > 0 for number in row) for row in rows)
    ((compared, worst),) = numbers(printed, "Figures found beside training and found again (target: within 1e-6)")
    assert compared > 0
    assert worst <= 1e-6
