"""Mistakes at the keyboard: one line, exit code 2, nothing left behind. No cluster is started for any of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.training import checkpoints
from tests.pipeline.small import evaluation, game, record, tiny


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err
    assert code == 2, errors
    lines = [line for line in errors.split("\n") if line and not line.startswith("\r")]
    assert len(lines) == 1 and lines[0].startswith("vaegan: "), errors
    return lines[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_mistyped_setting_is_named_with_its_value_and_the_nearest(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "train", "digits", "--set", "objective.lamda=3")
    assert "objective.lamda" in line and "3" in line and "objective.lambda" in line
    assert not list(here.iterdir())


def test_images_of_a_size_the_networks_cannot_take_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "digits", "--size", "48", "--out", "data"]) == 0
    capsys.readouterr()
    line = refused(capsys, "train", "plain-conv", "--set", "data.path=data", "--dry-run")
    assert "48 x 48" in line and "--size 32" in line
    assert [path.name for path in here.iterdir()] == ["data"]


def test_a_batch_that_workers_do_not_divide_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", "digits", "--set", "workers.count=1..3")
    assert "data.batch is 64" in line and "3 workers" in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["evaluation.extractors=[classifier]", "checkpoints.metric=eval/fd_classifier/samples"], "features train"),
        (["checkpoints.metric=eval/kd_pca64/samples"], "there are 359 of the split 'test'"),
    ],
)
def test_what_checkpoints_can_not_be_measured_by_is_told_before_anything_starts(
    here: Path, capsys: pytest.CaptureFixture[str], changes: list[str], told: str
) -> None:
    assert main(["data", "prepare", "digits", "--out", "data"]) == 0
    capsys.readouterr()
    sets = [part for change in ("data.path=data", *changes) for part in ("--set", change)]
    for dry in ([], ["--dry-run"]):
        assert told in refused(capsys, "train", "digits", *sets, *dry)
    assert [path.name for path in here.iterdir()] == ["data"]


def test_a_missing_data_set_names_the_command_that_makes_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", "digits", "--set", "data.path=nowhere")
    assert "vaegan data prepare SOURCE --out nowhere" in line
    assert not list(here.iterdir())


def test_an_empty_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    assert "empty" in refused(capsys, "data", "prepare", "folder", here / "empty", "--out", "data")
    assert not (here / "data").exists()


def test_an_unreadable_image_is_named_and_nothing_is_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(here / "photos" / "good.png")
    (here / "photos" / "bad.png").write_bytes(b"no image")
    line = refused(capsys, "data", "prepare", "folder", here / "photos", "--out", "data")
    assert "bad.png" in line and "--skip-bad" in line
    assert [path.name for path in here.iterdir()] == ["photos"]


def test_an_existing_output_folder_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data").mkdir()
    assert "exists" in refused(capsys, "data", "prepare", "digits", "--out", "data")
    assert not list((here / "data").iterdir())


def test_a_model_or_run_that_is_not_there_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nobody" in refused(capsys, "sample", "nobody", "--out", "grid.png")
    assert "models:/nobody@champion" in refused(capsys, "sample", "models:/nobody@champion", "--out", "grid.png")
    assert "nobody" in refused(capsys, "register", "nobody", "--name", "model")
    assert not list(here.iterdir())


def test_a_sweep_without_a_distribution_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sweep.yaml").write_text("preset: digits\n")
    assert "nothing to search" in refused(capsys, "tune", "run", "sweep.yaml")


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(here: Path, digits: str) -> Path:
    """Of the run `small`, and all that it has."""
    record(tiny(digits, here / "runs", {"name": "small"}), uri=f"sqlite:///{here}/runs/mlflow.db")
    played = game()
    path = checkpoints.write(here / "runs" / "small", played.state.snapshot(), played.description)
    checkpoints.write_evaluation(path, evaluation(1.0))
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def of_another_program(path: Path) -> None:
    state = path.with_name("state.json")
    tree = json.loads(state.read_text())
    tree["description"]["networks"]["family"] = "transformer"
    state.write_text(json.dumps(tree))
    path.write_text(json.dumps(checkpoints._fingerprints(path.parent)))


@pytest.mark.parametrize(
    ("file", "spoil", "told"),
    [
        ("average.safetensors", cut, "average.safetensors is damaged: its size or sha256 differs"),
        ("state.json", cut, "state.json is damaged: its size or sha256 differs"),
        ("optimizer-discriminator.safetensors", Path.unlink, "optimizer-discriminator.safetensors is damaged"),
        ("manifest.json", Path.unlink, "is not a checkpoint: it has no readable manifest.json"),
        ("manifest.json", of_another_program, "not a checkpoint of this version of vaegan"),
    ],
)
def test_a_checkpoint_that_is_damaged_or_not_ours_is_named(
    checkpoint: Path,
    digits: str,
    capsys: pytest.CaptureFixture[str],
    file: str,
    spoil: Callable[[Path], None],
    told: str,
) -> None:
    spoil(checkpoint / file)
    for command in (
        ["sample", "small", "--out", "grid.png"],
        ["evaluate", "small", "--data", digits],
        ["register", "small", "--name", "model"],
    ):
        line = refused(capsys, *command)
        assert told in line and checkpoint.name in line
    assert not Path("grid.png").exists() and not Path("runs/mlflow.db").exists()


def test_a_checkpoint_without_an_evaluation_is_not_registered(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(checkpoint / "evaluation.json")
    line = refused(capsys, "register", "small", "--name", "model")
    assert f"{checkpoint.name} has no readable evaluation.json; `vaegan evaluate" in line


def test_data_of_another_shape_than_the_models_are_refused(
    checkpoint: Path, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("sample", "evaluate"):
        line = refused(capsys, command, "small", "--data", digits, "--out", "made")
        assert "(1, 32, 32)" in line and "(1, 4, 4)" in line
    assert not Path("made").exists()
