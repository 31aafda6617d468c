"""One grammar for what a command is about; a slip is answered with what was probably meant."""

from pathlib import Path

import pytest

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation
from pipeline.references import find, is_model
from pipeline.tracking import MemoryTracker, push, run_id
from pipeline.training import checkpoints
from tests.pipeline.small import game, record, tiny

FD, PSNR = "eval/fd_pca64/samples", "eval/psnr/reconstructions"


def made(home: Path, digits: str, name: str, figures: dict[int, float], metric: str = FD, kind: str = "run") -> Path:
    """A run with checkpoints that have these figures."""
    settings = tiny(digits, home, {"name": name, "checkpoints.metric": metric})
    record(settings, parent=".." if name.startswith("trial") else None, kind=kind)
    for seen, figure in figures.items():
        played = game()
        played.state.progress.images_seen = seen
        path = checkpoints.write(home / name, played.state.snapshot(), played.description)
        checkpoints.write_evaluation(path, Evaluation(figures={metric: figure}, protocols={}))
    return home / name


@pytest.fixture
def home(tmp_path: Path, digits: str) -> Path:
    made(tmp_path, digits, "digits", {100: 3.0, 200: 1.0, 300: 2.0})
    made(tmp_path, digits, "loud", {100: 3.0, 200: 1.0, 300: 2.0}, PSNR)
    search = made(tmp_path, digits, "search", {}, kind="search")
    for number, figures in enumerate(({100: 5.0}, {100: 9.0, 200: 0.5, 300: 7.0}, {}, {100: 0.6})):
        made(search, digits, f"trial-0000{number}", figures)
    return tmp_path


def test_a_run_leads_to_its_best_checkpoint(home):
    found = find("digits", home)
    assert (found.directory, found.checkpoint.images_seen) == (home / "digits", 200)
    assert found.checkpoint.path == home / "digits" / "images-000000200"
    assert (found.record["name"], found.settings.name) == ("digits", "digits")


def test_best_is_what_the_runs_own_metric_says(home):
    assert find("loud", home).checkpoint.images_seen == 100


def test_a_search_leads_to_the_best_checkpoint_of_its_best_trial(home):
    found = find("search", home)
    assert (found.directory.name, found.checkpoint.images_seen) == ("trial-00001", 200)
    assert found.record["name"] == found.settings.name == "trial-00001"


def test_a_trial_can_be_named_itself(home):
    assert find("search/trial-00003", home).checkpoint.figures == {FD: 0.6}


@pytest.mark.parametrize("name", ["digits", "search/trial-00003", "search"])
def test_a_trackers_id_leads_where_the_name_does(home, name):
    tracker = MemoryTracker()
    push(home / name, tracker)
    assert find(f"runs:/{run_id(home / name)}", home) == find(name, home)


def test_an_id_that_no_run_has_is_refused_with_the_way_out(home):
    with pytest.raises(Mistake) as caught:
        find("runs:/abc", home)
    line = f"runs:/abc: no run below {home} is tracked under that id; name another home with --home"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("ref", "meant"), [("digit", "digits"), ("Digits", "digits"), ("search/trial-0001", "search/trial-00001")]
)
def test_a_slip_is_answered_with_the_nearest_name(home, ref, meant):
    with pytest.raises(Mistake) as caught:
        find(ref, home)
    assert str(caught.value) == f"there is no run {ref!r} in {home}; did you mean {meant!r}?"


@pytest.mark.parametrize("ref", ["zzzzzz", "digits/images-000000200"])
def test_a_name_like_no_other_is_answered_with_the_way_out(home, ref):
    with pytest.raises(Mistake, match=f"^there is no run '{ref}' in "):
        find(ref, home)
    with pytest.raises(Mistake, match=f"^there is no run '{ref}' in .*: name another home with --home$"):
        find(ref, home / "nowhere")


def test_a_run_without_a_checkpoint_is_told_so(home):
    with pytest.raises(Mistake, match="search/trial-00002 has no checkpoint yet"):
        find("search/trial-00002", home)


@pytest.mark.parametrize("folder", ["digits/images-000000300", "search/trial-00001/images-000000100"])
def test_a_checkpoint_can_be_named_by_its_folder(home, folder):
    found = find(str(home / folder), home / "anywhere")
    assert found.checkpoint.path == home / folder
    assert found.directory == (home / folder).parent


def test_a_folder_that_holds_no_checkpoint_is_told_so(home):
    with pytest.raises(Mistake, match="images-000000999 is not a checkpoint"):
        find(str(home / "digits" / "images-000000999"), home)
    (home / "digits" / "images-000000200" / "state.json").write_text("{")
    with pytest.raises(Mistake, match=r"state.json is damaged"):
        find(str(home / "digits" / "images-000000200"), home)


def test_a_checkpoint_that_cannot_be_read_is_passed_over(home):
    (home / "digits" / "images-000000200" / "state.json").write_text("{")
    assert find("digits", home).checkpoint.images_seen == 300


def test_a_model_is_told_from_a_run():
    assert is_model("models:/digits@champion")
    assert is_model("models:/digits/3")
    assert not is_model("digits")
    assert not is_model("runs:/abc")
