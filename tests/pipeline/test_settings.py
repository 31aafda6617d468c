"""Settings say what a run is; a mistake in them is one line with the place, the value and the remedy."""

import re
from pathlib import Path

import pytest

from pipeline.errors import Mistake
from pipeline.settings import Settings, better, dump, flatten, identity, identity_hash, load, parse, presets, read_tree
from pipeline.tuning.space import take_apart
from tests.pipeline.small import changed

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "tune_configs").glob("*.yaml"))


def settings(**changes: object) -> Settings:
    return parse(changed({"name": "a"}, {path.replace("__", "."): value for path, value in changes.items()}))


def complaint(*overrides: str, preset: str = "digits") -> str:
    with pytest.raises(Mistake) as caught:
        load(preset, overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("preset", presets())
def test_every_preset_parses_and_survives_a_round_trip(preset):
    parsed = load(preset)
    assert parsed.name == preset
    assert parse(dump(parsed)) == parsed


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_takes_apart(path):
    space = take_apart(read_tree(str(path)))
    assert {"objective.beta", "objective.lambda"} <= set(space.leaves)


def test_there_are_presets_and_sweeps_to_test():
    assert {"digits", "larsen", "plain-mlp", "plain-conv"} <= set(presets())
    assert {path.stem for path in SWEEPS} >= {"digits", "fashion_mnist"}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "sed is not a setting (its value was 1); did you mean seed?"),
        ("beta=2", "beta is not a setting (its value was 2); did you mean objective.beta?"),
        ("data.seed=2", "data.seed is not a setting (its value was 2); did you mean seed?"),
        ("objective.bta=1", "objective.bta is not a setting (its value was 1); did you mean objective.beta?"),
        ("objective.lambda_=1", "objective.lambda_ is not a setting (its value was 1); did you mean objective.lambda?"),
        ("zzz=[1]", "zzz is not a setting (its value was [1])"),
        ('objective.beta="0.5"', 'objective.beta is "0.5"; expected a valid number'),
        ("data.batch=64.5", "data.batch is 64.5; expected a valid integer"),
        ("name=7", "name is 7; expected a valid string"),
        ("objective=3", "objective is 3; expected an object"),
        ("objective.gate=3", "objective.gate is 3; expected an object"),
        ("objective.beta=-1", "objective.beta is -1.0; expected a number >= 0"),
        ("objective.beta=.nan", "objective.beta is NaN; expected a finite number"),
        ("objective.lambda=.inf", "objective.lambda is Infinity; expected a finite number"),
        ("stop.minutes=.inf", "stop.minutes is Infinity; expected a finite number"),
        ("optimizers.autoencoder.lr=0", "optimizers.autoencoder.lr is 0.0; expected a number > 0"),
        ("stop.patience=0", "stop.patience is 0; expected evaluations >= 1, or null"),
        ("seed=-1", "seed is -1; expected a whole number from 0 to 2^63 - 1"),
        ("name=a/b", "name is 'a/b'; expected a name without slashes"),
        ("workers.count=4..2", "workers.count is '4..2'; expected a number >= 1, or 'min..max'"),
        ("workers.count=0", "workers.count is 0; expected a number >= 1, or 'min..max'"),
        ("workers.count=many", "workers.count is 'many'; expected a number >= 1, or 'min..max'"),
        ("networks.norm=group", "networks.norm is 'group'; expected 'none': the mlp family has no normalisation"),
    ],
)
def test_a_bad_value_is_one_line_with_place_value_and_remedy(override, line):
    assert complaint(override) == line


@pytest.mark.parametrize("value", ["2.5", "[1, 2]", "null"])
def test_a_mistyped_number_of_workers_is_named_by_its_own_path(value):
    assert complaint(f"workers.count={value}").startswith("workers.count is ")


@pytest.mark.parametrize("count", ["1..", "..2", "1...2", "1..2..3", " "])
def test_half_a_range_of_workers_is_refused(count):
    assert complaint(f"workers.count={count!r}").endswith("expected a number >= 1, or 'min..max'")


@pytest.mark.parametrize(("count", "culprit"), [("3", 3), ("2..4", 3), ("1..5", 3), ("128", 128)])
def test_a_batch_that_some_number_of_workers_cannot_share_is_refused(count, culprit):
    shown = count if ".." not in count else repr(count)
    assert complaint(f"workers.count={count}") == (
        f"data.batch is 64 and workers.count is {shown}: {culprit} workers can't share 64 images evenly; "
        f"choose a batch that {culprit} divides"
    )


def test_a_batch_that_all_numbers_of_workers_share_is_accepted():
    assert load("digits", ["workers.count=1..2"]).workers.range == (1, 2)
    assert load("digits", ["workers.count=1..4", "data.batch=24"]).workers.range == (1, 4)


def test_a_generator_without_a_turn_is_refused():
    assert "optimizers.generator has no effect with objective.schedule joint" in complaint("optimizers.generator.lr=1")
    assert load("plain-mlp", ["optimizers.generator.lr=1"]).optimizers.generator.lr == 1


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("2", 2.0), ("5E3", 5e3)])
def test_a_number_is_a_number_in_any_notation(text, number, tmp_path):
    (tmp_path / "a.yaml").write_text(f"optimizers: {{autoencoder: {{lr: {text}}}}}\n")
    assert load(str(tmp_path / "a.yaml")).optimizers.autoencoder.lr == number
    assert load("digits", [f"optimizers.autoencoder.lr={text}"]).optimizers.autoencoder.lr == number


def test_lambda_is_written_without_its_underscore():
    parsed = load("digits", ["objective.lambda=0.25"])
    assert parsed.objective.lambda_ == 0.25
    assert flatten(dump(parsed))["objective.lambda"] == 0.25


def test_an_unknown_preset_is_answered_with_the_nearest_and_all():
    line = complaint(preset="digit")
    assert line.startswith("'digit' is neither a YAML file nor a preset")
    assert "did you mean 'digits'?" in line
    assert line.endswith(f"presets are {', '.join(presets())}")


def test_presets_are_listed_apart_from_what_is_wrong():
    assert "preset presets are" not in complaint(preset="zzzz")


def test_an_unknown_preset_named_in_a_file_is_answered_alike(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: larson\n")
    assert "did you mean 'larsen'?" in complaint(preset=str(tmp_path / "a.yaml"))


def test_a_preset_may_be_built_on_another_and_a_file_on_both(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: rgb-32\nobjective: {lambda: 7}\n")
    parsed = load(str(tmp_path / "a.yaml"))
    assert (parsed.name, parsed.objective.lambda_, parsed.networks.latent) == ("a", 7, 32)
    assert parsed.objective.penalty == load("default").objective.penalty == 0.25


def test_a_missing_file_is_named_with_the_presets_there_are(tmp_path):
    path = tmp_path / "none.yaml"
    assert complaint(preset=str(path)) == f"{path}: No such file or directory; presets are {', '.join(presets())}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("objective: {beta: 1", "not YAML: "),
        ("seed: 1\nseed: 2\n", "not YAML: "),
        ("- 1\n- 2\n", "expected settings by name, such as `seed: 1`, not [1, 2]"),
        ("", "expected settings by name, such as `seed: 1`, not None"),
    ],
)
def test_broken_yaml_is_one_line_that_names_the_file(tmp_path, text, said):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert complaint(preset=str(path)).startswith(f"{path}: {said}")


def test_a_file_that_is_no_text_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert complaint(preset=str(path)).startswith(f"{path}: ")


def test_a_value_that_yaml_makes_a_date_is_one_line():
    assert complaint("name=2024-01-01").startswith("settings hold something YAML should not: ")


def test_an_override_without_a_value_is_refused():
    line = "--set 'objective.beta': expected path=value, such as objective.beta=0.5"
    assert complaint("objective.beta") == line


def test_an_override_that_is_not_yaml_names_itself():
    assert complaint("objective.beta=[1").startswith("--set objective.beta=[1: not YAML: ")


def test_an_override_beats_the_file_and_the_file_beats_its_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: digits\nseed: 3\nobjective: {beta: 7}\n")
    base, parsed = load("digits"), load(str(path), ["seed=4", "seed=5"])
    assert (parsed.name, parsed.seed, parsed.objective.beta) == ("mine", 5, 7.0)
    assert parsed.objective.lambda_ == base.objective.lambda_ != Settings(name="a").objective.lambda_
    assert (parsed.networks, parsed.data) == (base.networks, base.data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "b"),
        ("home", "elsewhere"),
        ("log_every", 7),
        ("register", "model"),
        ("workers.count", 2),
        ("workers.cpus", 2.0),
        ("stop.images", 9),
        ("stop.patience", 3),
        ("stop.minutes", 1.0),
        ("checkpoints.every", 7),
        ("checkpoints.num_to_keep", 7),
        ("tracking.uri", "http://here"),
        ("tracking.offline", True),
        ("data.path", "moved"),
        ("data.budget_mb", 1),
    ],
)
def test_a_run_stays_itself_when_only_its_circumstances_change(path, value):
    assert identity(settings(**{path: value}), "d") == identity(settings(), "d")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("average_half_life", 7),
        ("data.batch", 64),
        ("data.window", 7),
        ("networks.latent", 7),
        ("objective.beta", 7.0),
        ("objective.lambda", 7.0),
        ("objective.likelihood.std", 0.5),
        ("optimizers.autoencoder.lr", 7.0),
        ("optimizers.discriminator.kind", "rmsprop"),
    ],
)
def test_another_value_of_what_is_computed_makes_another_run(path, value):
    one, other = identity(settings(), "d"), identity(settings(**{path: value}), "d")
    assert {key for key in {**one, **other} if one.get(key) != other.get(key)} == {path}
    assert identity_hash(one) != identity_hash(other)


def test_other_data_make_another_run():
    assert identity(settings(), "d") != identity(settings(), "e")
    assert identity_hash(identity(settings(), "d")) == identity_hash(identity(settings(), "d"))


@pytest.mark.parametrize(
    ("figure", "way"),
    [
        ("eval/fd_classifier/samples", "min"),
        ("eval/fid/reconstructions", "min"),
        ("eval/kid/samples", "min"),
        ("eval/coverage_inception/samples", "max"),
        ("eval/class_coverage/samples", "max"),
        ("eval/psnr/reconstructions", "max"),
        ("eval/bits_per_dim/images", "min"),
        ("eval/dci_completeness/latents", "max"),
    ],
)
def test_every_figure_is_better_one_way(figure, way):
    assert better(figure) == way


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("eval/fid/samples", "evaluation.extractors are pca64, classifier; add the one it is measured with"),
        ("eval/fd_clasifier/samples", "did you mean eval/fd_classifier/samples?"),
        ("eval/kl/images", "no figure that checkpoints can be ranked by"),
        ("eval/bits_per_dim/images", "no figure that checkpoints can be ranked by"),
        ("eval/mig/latents", "no figure that checkpoints can be ranked by"),
    ],
)
def test_a_metric_is_a_figure_that_the_evaluation_gives(metric, told):
    tree = {"name": "a", "objective": {"likelihood": {"kind": "bernoulli"}}}
    tree |= {"evaluation": {"extractors": ["pca64", "classifier"]}}
    assert parse(tree | {"checkpoints": {"metric": "eval/class_coverage/samples"}})
    with pytest.raises(Mistake, match=re.escape(told)):
        parse(tree | {"checkpoints": {"metric": metric}})
