"""`vaegan evaluate` says of a checkpoint what its run did, and refuses in one line what it can't."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.data.prepare import prepare
from pipeline.data.sources import open_source
from pipeline.evaluation.offline import _candidate
from pipeline.evaluation.protocol import how
from pipeline.training import checkpoints
from tests.pipeline.small import evaluation, game, record, run, tiny


@pytest.fixture(scope="module")
def home(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run `tiny` of two checkpoints; not to be written to."""
    home = tmp_path_factory.mktemp("home")
    settings = tiny(digits, home)
    record(settings)
    run(settings)
    return home


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a mistake."""
    line = capsys.readouterr().err
    assert line.startswith("vaegan: ") and line.count("\n") == 1
    return line


def test_figures_are_those_of_the_run(home, digits, tmp_path, capsys):
    for path in (home / "tiny").glob("images-*"):
        out = tmp_path / f"{path.name}.json"
        assert main(["evaluate", str(path), "--data", digits, "--out", str(out)]) == 0
        found, trained = json.loads(out.read_text()), checkpoints.evaluation_of(path)
        assert found["checkpoint"] == checkpoints.digest(path)
        assert found["figures"] == pytest.approx(trained.figures, rel=1e-6)
        assert {name: how(one) for name, one in found["protocols"].items()} == {
            name: how(one) for name, one in trained.protocols.items()
        }
    assert "a kernel distance takes 1,000 images; there are 64 of the split 'test'" in capsys.readouterr().out


def test_a_run_stands_for_its_best_checkpoint(home, digits, tmp_path):
    assert main(["evaluate", "tiny", "--data", digits, "--home", str(home), "--out", str(tmp_path / "a.json")]) == 0
    best = checkpoints.ranked(checkpoints.listed(home / "tiny"), "eval/fd_pca64/samples")[0]
    assert json.loads((tmp_path / "a.json").read_text())["checkpoint"] == checkpoints.digest(best.path)


def test_other_samples_and_extractors_are_measured_with_where_they_are_asked_for(home, digits, tmp_path):
    asked = ["--samples", "96", "--extractor", "pca64", "--extractor", "pca64"]
    out = tmp_path / "found.json"
    assert main(["evaluate", "tiny", "--data", digits, "--home", str(home), *asked, "--out", str(out)]) == 0
    protocols = json.loads(out.read_text())["protocols"]
    assert {how["samples"] for how in protocols.values() if "samples" in how} == {96}
    assert {how["extractor"] for how in protocols.values() if "extractor" in how} == {"pca64"}


def test_signs_of_trouble_outlive_an_evaluation_that_cannot_be_read(digits, tmp_path):
    record(tiny(digits, tmp_path))
    played = game()
    played.state.progress.flags, played.state.progress.standing = ["logit_gap"], ["mode_collapse", "logit_gap"]
    path = checkpoints.write(tmp_path / "tiny", played.state.snapshot(), played.description)
    assert _candidate("tiny", tmp_path).health == ("logit_gap", "mode_collapse")
    checkpoints.write_evaluation(path, evaluation(1.0))
    assert _candidate("tiny", tmp_path).health == ()


def test_a_damaged_checkpoint_is_refused(home, digits, tmp_path, capsys):
    shutil.copytree(home / "tiny" / "images-000000256", tmp_path / "copy")
    weights = tmp_path / "copy" / "average.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main(["evaluate", str(tmp_path / "copy"), "--data", digits]) == 2
    assert f"{weights} is damaged: its size or sha256 differs" in told(capsys)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{tmp}", "--data", "{digits}"], "{tmp} is not a checkpoint"),
        (["tinny", "--data", "{digits}"], "there is no run 'tinny' in {home}; did you mean 'tiny'?"),
        (["tiny", "--data", "{tmp}"], "no dataset.json there"),
        (["tiny", "--data", "{digits}", "--extractor", "pca"], "extractor 'pca' is not known; expected one of pca64"),
        (["tiny", "--data", "{digits}", "--extractor", "classifier"], "has no classifier yet: train it with"),
        (["tiny", "--data", "{digits}", "--extractor", "inception"], "no weights at"),
        (["tiny", "--data", "{digits}", "--samples", "2"], "--samples is 2; expected a number of images >= 3"),
        (["tiny", "--data", "{digits}", "--workers", "0"], "--workers is 0; expected a number of processes >= 1"),
    ],
)
def test_what_is_wrong_is_one_line(home, digits, tmp_path, capsys, monkeypatch, arguments, complaint):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    places = {"tmp": tmp_path, "digits": digits, "home": home}
    assert main(["evaluate", *(part.format(**places) for part in arguments), "--home", str(home)]) == 2
    assert complaint.format(**places) in told(capsys)


def test_a_picture_of_one_held_out_image_has_no_interpolations(home, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("L", (32, 32), 128).save(tmp_path / "photos" / "one.png")
    prepare(open_source("folder", tmp_path / "photos"), "folder", tmp_path / "one", size=32, progress=False)
    for data, shown in ((str(tmp_path / "one"), "16 samples, reconstructions"), (None, "16 samples")):
        given = ["--data", data] if data else []
        out = str(tmp_path / "grid.png")
        assert main(["sample", "tiny", "--home", str(home), "--out", out, "--count", "16", *given]) == 0
        assert capsys.readouterr().out == f"{out}: {shown}\n"


def test_data_of_another_shape_are_refused(home, tmp_path, capsys):
    prepare(open_source("digits"), "digits", tmp_path / "small", size=16, progress=False)
    assert main(["evaluate", "tiny", "--data", str(tmp_path / "small"), "--home", str(home)]) == 2
    assert "has images of (1, 16, 16); the model's are (1, 32, 32)" in told(capsys)
