"""A sweep is settings whose leaves may be distributions; what it would draw is checked before it starts."""

import pytest

from pipeline.errors import Mistake
from pipeline.settings import Tree, parse
from pipeline.tuning.space import Distribution, filled, take_apart
from tests.pipeline.small import changed

BASE: Tree = {"name": "sweep", "objective": {"beta": {"loguniform": [0.1, 10]}}}


def complaint(changes: dict[str, object], base: Tree = BASE) -> str:
    with pytest.raises(Mistake) as caught:
        take_apart(changed(base, changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_leaves_are_found_wherever_they_stand():
    tree = changed(
        BASE,
        {
            "seed": {"grid": [0, 1, 2]},
            "optimizers.autoencoder.lr": {"uniform": [1e-4, 1e-3]},
            "objective.schedule": {"choice": ["plain", "joint"]},
        },
    )
    assert take_apart(tree).leaves == {
        "objective.beta": Distribution("loguniform", (0.1, 10)),
        "seed": Distribution("grid", (0, 1, 2)),
        "optimizers.autoencoder.lr": Distribution("uniform", (1e-4, 1e-3)),
        "objective.schedule": Distribution("choice", ("plain", "joint")),
    }


def test_the_base_is_settings_with_first_values_and_the_tree_is_left_alone():
    tree = changed(BASE, {"search.trials": 3, "objective.lambda": {"choice": [5, 6]}})
    before = repr(tree)
    space = take_apart(tree)
    assert repr(tree) == before
    assert space.search.trials == 3
    assert (parse(space.base).objective.beta, parse(space.base).objective.lambda_) == (0.1, 5)


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ({"uniform": [1, 1]}, "uniform of [low, high] with low < high"),
        ({"uniform": [2, 1]}, "uniform of [low, high] with low < high"),
        ({"uniform": [1]}, "uniform of [low, high] with low < high"),
        ({"uniform": [1, 2, 3]}, "uniform of [low, high] with low < high"),
        ({"uniform": 3}, "uniform of [low, high] with low < high"),
        ({"uniform": [1, "a"]}, "uniform of [low, high] with low < high"),
        ({"uniform": [False, True]}, "uniform of [low, high] with low < high"),
        ({"uniform": [float("nan"), 1]}, "uniform of [low, high] with low < high"),
        ({"loguniform": [0, 1]}, "loguniform of [low, high] with low < high, both > 0"),
        ({"loguniform": [-1, 1]}, "loguniform of [low, high] with low < high, both > 0"),
        ({"choice": []}, "choice of a list of values, such as [1, 2, 4]"),
        ({"grid": 4}, "grid of a list of values, such as [1, 2, 4]"),
    ],
)
def test_a_distribution_that_is_none_is_one_line_with_place_value_and_form(leaf, expected):
    ((kind, values),) = leaf.items()
    assert complaint({"objective.lambda": leaf}) == (f"objective.lambda is {{{kind}: {values}}}; expected {expected}")


@pytest.mark.parametrize(
    ("path", "leaf", "line"),
    [
        ("objective.lambda", {"uniform": [-1, 1]}, "objective.lambda is -1.0; expected a number >= 0"),
        (
            "optimizers.autoencoder.momentum",
            {"uniform": [0, 1]},
            "optimizers.autoencoder.momentum is 1.0; expected a number in [0, 1)",
        ),
        ("objective.lambda", {"uniform": [0, float("inf")]}, "objective.lambda is Infinity; expected a finite number"),
        ("networks.latent", {"choice": [8, 0]}, "networks.latent is 0; expected a whole number >= 1"),
        ("data.batch", {"grid": [64, "many"]}, 'data.batch is "many"; expected a valid integer'),
        ("objective.lamda", {"choice": [1]}, "objective.lamda is not a setting (its value was 1); did you mean "),
    ],
)
def test_either_end_and_every_choice_must_be_a_setting(path, leaf, line):
    assert complaint({path: leaf}).startswith(line)


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_a_range_over_whole_numbers_is_refused_since_its_draws_are_not(kind):
    assert complaint({"networks.latent": {kind: [8, 64]}}).startswith("networks.latent is ")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"search.trials": 0}, "search.trials is 0; expected a whole number >= 1"),
        ({"search.reduction": 1}, "search.reduction is 1; expected a whole number >= 2"),
        ({"search.concurrent": 0}, "search.concurrent is 0; expected a number >= 1, or null"),
        ({"search.trails": 4}, "search.trails is not a setting (its value was 4); did you mean search.trials?"),
        ({"search.trials": "many"}, 'search.trials is "many"; expected a valid integer'),
    ],
)
def test_a_rule_of_the_search_is_checked_like_any_setting(changes, line):
    assert complaint(changes).startswith(line)


def test_a_sweep_without_a_distribution_is_refused():
    assert complaint({}, {"name": "a"}).startswith("nothing to search: give some setting a distribution")


@pytest.mark.parametrize(
    ("leaves", "trials"),
    [
        ({}, 5),
        ({"seed": {"grid": [0, 1, 2]}}, 15),
        ({"seed": {"grid": [0, 1, 2]}, "networks.latent": {"grid": [4, 8]}}, 30),
        ({"objective.lambda": {"choice": [0, 1, 2, 3]}}, 5),
    ],
)
def test_a_grid_is_walked_whole_for_every_draw(leaves, trials):
    assert take_apart(changed(BASE, {"search.trials": 5, **leaves})).trials == trials


def test_drawn_values_land_in_their_places_and_nowhere_else():
    space = take_apart(changed(BASE, {"seed": {"grid": [0, 1]}}))
    before = repr(space.base)
    one = filled(space.base, {"objective.beta": 3.5, "seed": 1})
    assert one == changed(space.base, {"objective.beta": 3.5, "seed": 1})
    assert repr(space.base) == before
    assert (parse(one).objective.beta, parse(one).seed) == (3.5, 1)
