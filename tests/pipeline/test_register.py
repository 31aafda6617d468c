"""Aliases of a real registry move only to what `decide` promotes, and a version keeps what was decided on."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import Mistake
from pipeline.evaluation.offline import _candidate
from pipeline.evaluation.protocol import Evaluation
from pipeline.lineage import lineage
from pipeline.registry.register import register
from pipeline.registry.versions import version_of
from pipeline.report.write import report
from pipeline.training import checkpoints
from tests.pipeline.small import PSNR, evaluation, game, record, tiny

pytestmark = pytest.mark.cluster


class Registry:
    """A home and its MLflow."""

    def __init__(self, home: Path, digits: str, uri: str) -> None:
        self.home = home
        self._digits = digits
        self.uri = uri
        self._client = MlflowClient(uri)

    def made(self, name: str, found: Evaluation) -> Path:
        """A run with one checkpoint, evaluated so."""
        record(tiny(self._digits, self.home, {"name": name}), uri=self.uri)
        played = game(seed=len(list(self.home.glob("*/run.json"))))
        path = checkpoints.write(self.home / name, played.state.snapshot(), played.description)
        checkpoints.write_evaluation(path, found)
        return path

    def offered(self, name: str, found: Evaluation) -> str | None:
        """The run of the champion once such a run has been registered."""
        self.made(name, found)
        register(name, "model", self.home)
        return self.champion

    @property
    def champion(self) -> str | None:
        """Its run."""
        version = self._client.get_registered_model("model").aliases.get("champion")
        return None if version is None else Path(self.tags(version)["vaegan.run"]).name

    def crown(self, source: str) -> None:
        """Make a champion of a model from elsewhere."""
        self._client.create_registered_model("model")
        version = self._client.create_model_version("model", source)
        self._client.set_registered_model_alias("model", "champion", version.version)

    @property
    def versions(self) -> int:
        return len(self._client.search_model_versions("name = 'model'"))

    def tags(self, version: int | str) -> dict[str, str]:
        return dict(self._client.get_model_version("model", str(version)).tags)

    def evaluation(self, version: int) -> Evaluation:
        return version_of(f"models:/model/{version}", self.uri).evaluation


@pytest.fixture
def registry(tmp_path: Path, digits: str, store: str) -> Registry:
    return Registry(tmp_path, digits, store)


def test_the_champion_changes_for_what_is_better_and_for_nothing_else(registry, capsys):
    ill = replace(evaluation(1.0, noise=0.1), health=("mode_collapse",))
    assert registry.offered("few", evaluation(5.0, noise=0.1, samples=64)) is None
    assert "vaegan sample models:/model@challenger" in capsys.readouterr().out
    assert registry.offered("first", evaluation(5.0, noise=0.1)) == "first"
    assert registry.offered("worse", evaluation(6.0, noise=0.1)) == "first"
    assert registry.offered("lucky", evaluation(4.7, noise=0.1)) == "first"
    assert registry.offered("ill", ill) == "first"
    assert registry.offered("blurred", evaluation(1.0, psnr=18.0, noise=0.1)) == "first"
    assert registry.offered("elsewhere", evaluation(1.0, noise=0.1, data="e" * 64)) == "first"
    shown = capsys.readouterr().out
    assert shown.count("model@champion stays version 2") == 5
    assert "data eeeeeeeeeeee" in shown and "data dddddddddddd" in shown
    assert registry.offered("better", evaluation(4.0, noise=0.1)) == "better"
    assert "vaegan sample models:/model@champion" in capsys.readouterr().out
    assert registry.evaluation(5) == ill
    assert registry.tags(5)["vaegan.health"] == "mode_collapse"


def test_a_champion_that_was_registered_by_other_means_stays(registry, tmp_path, capsys):
    registry.crown((tmp_path / "nothing").as_uri())
    registry.made("ours", evaluation(1.0))
    register("ours", "model", registry.home)
    assert "model@champion stays version 1: eval/fd_pca64/samples or its noise is not known of both" in (
        capsys.readouterr().out
    )


def test_no_worse_one_wins_by_chance(registry):
    chance = random.Random(0)
    best = registry.offered("0", evaluation(10.0, noise=0.1))
    for number in range(1, 8):
        truth = 10.0 + chance.choice([0.05, 0.1, 0.5])
        assert registry.offered(str(number), evaluation(truth + 0.1 * chance.gauss(), noise=0.1)) == best


def test_a_checkpoint_is_one_version_until_it_is_evaluated_anew(registry, capsys):
    path = registry.made("run", evaluation(5.0, seed=0))
    for _ in range(2):
        register("run", "model", registry.home)
    assert registry.versions == 1
    assert "this checkpoint, registered before" in capsys.readouterr().out
    checkpoints.write_evaluation(path, evaluation(7.0, seed=1))
    register("run", "model", registry.home)
    assert registry.versions == 2
    assert "model@champion is version 2" in capsys.readouterr().out, "it keeps the throne, not the old figures"
    assert registry.offered("other", evaluation(6.0, seed=1)) == "other"


def test_a_champion_that_is_evaluated_in_another_way_stays_champion_whatever_its_siblings_figures(registry, capsys):
    registry.made("run", evaluation(5.0))
    best = registry.home / "run" / "images-000000600"
    played = game()
    played.state.progress.images_seen = 600
    checkpoints.write(best.parent, played.state.snapshot(), played.description)
    checkpoints.write_evaluation(best, evaluation(4.0))
    register("run", "model", registry.home)
    crowned = registry.tags(1)["vaegan.checkpoint_sha256"]
    assert crowned == checkpoints.digest(best)
    for number, anew in enumerate((evaluation(7.0, samples=2_000), replace(evaluation(1.0), figures={PSNR: 20.0})), 2):
        checkpoints.write_evaluation(best, anew)
        if number == 2:
            with pytest.raises(Mistake, match=f"in several ways .* vaegan register {best.parent}/images-"):
                register("run", "model", registry.home)
        register(str(best), "model", registry.home)
        assert f"model@champion is version {number}: the champion itself" in capsys.readouterr().out
        assert registry.tags(number)["vaegan.checkpoint_sha256"] == crowned


def test_a_report_stands_a_run_beside_the_champion(registry, tmp_path):
    registry.offered("first", evaluation(5.0, noise=0.1))
    registry.made("second", evaluation(6.5, noise=0.1))
    page = tmp_path / "report.html"
    report("second", registry.home, page, ["models:/model@champion"])
    assert "model@champion<small>version 1</small>" in page.read_text()
    assert "<td>6.5 <small>" in page.read_text() and "<td><b>5</b> <small>" in page.read_text()
    report("first", registry.home, page, ["models:/model/1"])
    assert "models:/model/1, version 1, is this run&#x27;s best checkpoint." in page.read_text()


def test_a_process_that_registered_nothing_sees_the_champions_figures_and_makes_no_database(registry, tmp_path):
    registry.offered("first", evaluation(5.125, noise=0.1))
    registry.made("second", evaluation(6.5, noise=0.1))
    empty, page = tmp_path / "empty", tmp_path / "report.html"
    empty.mkdir()
    command = ["report", "second", "--against", "models:/model@champion", "--home", str(registry.home)]
    apart = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *command, "--out", str(page)], cwd=empty, env=apart, check=True
    )
    assert "5.125" in page.read_text()
    assert list(empty.iterdir()) == []


def test_a_registered_model_is_measured_as_its_run_was_and_keeps_its_signs_of_trouble(registry):
    registry.offered("ill", replace(evaluation(5.0), health=("mode_collapse",)))
    candidate = _candidate("models:/model/1", registry.home)
    assert candidate.settings == tiny("data", registry.home).evaluation
    assert (candidate.settings.samples, candidate.health) == (64, ("mode_collapse",))


def test_passwords_in_addresses_are_registered_nowhere(registry, monkeypatch):
    address = "postgresql://me:p@ss-word@host/runs"
    monkeypatch.setattr(sys, "argv", ["vaegan", "train", "digits", "--set", f"tracking.uri={address}"])
    registry.made("run", evaluation(5.0, noise=0.1))
    file = registry.home / "run" / "run.json"
    found = json.loads(file.read_text())
    found["tags"], found["settings"]["tracking"]["uri"] = lineage("job"), address
    file.write_text(json.dumps(found))
    register("run", "model", registry.home)
    version = MlflowClient(registry.uri).get_model_version("model", "1")
    tracked = MlflowClient(registry.uri).get_run(str(version.run_id)).data
    for told in (version.description, version.tags, tracked.tags, tracked.params):
        assert "ss-word" not in str(told) and "postgresql://***@host/runs" in str(told)
