"""What is printed at the end of a run or search holds the figures that there are, and no more."""

from pathlib import Path

import pytest

from pipeline.evaluation.protocol import Evaluation
from pipeline.report.write import report
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.launch import Outcome
from pipeline.training.session import summarise
from pipeline.tuning.session import _summarise
from pipeline.tuning.space import take_apart
from tests.pipeline.small import FD, PSNR, Tree, changed, evaluation, game, record, tiny

OTHER = Evaluation(figures={"eval/fd_classifier/samples": 3.0, PSNR: 21.0}, protocols={})
SWEEP: Tree = {"name": "sweep", "objective": {"beta": {"choice": [1.0, 2.0]}}}


def test_a_best_checkpoint_that_was_measured_anew_stands_beside_the_newest(digits, tmp_path, capsys):
    best, newest = (Checkpoint(tmp_path, seen, found) for seen, found in ((1, OTHER), (2, evaluation(4.0))))
    summarise(tiny(digits, tmp_path), Outcome(tmp_path, "finished", best, newest))
    shown = capsys.readouterr().out
    assert "psnr/reconstructions" in shown and "fd_classifier" not in shown


@pytest.fixture
def sweep(digits: str, tmp_path: Path) -> Path:
    """Of a trial that was measured, one that was measured otherwise, one that was saved and not yet measured."""
    record(tiny(digits, tmp_path, {"name": "sweep"}), kind="search")
    for number, found in enumerate((evaluation(1.5, psnr=20.0), OTHER, None)):
        record(tiny(digits, tmp_path / "sweep", {"name": f"trial-0000{number}"}), parent="..")
        played = game(seed=number)
        folder = tmp_path / "sweep" / f"trial-0000{number}"
        path = checkpoints.write(folder, played.state.snapshot(), played.description)
        if found is not None:
            checkpoints.write_evaluation(path, found)
    return tmp_path


def test_a_trial_without_figures_has_its_row(sweep, digits, capsys):
    space = take_apart(changed(SWEEP, {"home": str(sweep), "data.path": digits}))
    _summarise(space, tiny(digits, sweep, {"name": "sweep"}), sweep / "sweep")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("trial-0")]
    assert [(name, *figures) for name, _, _, *figures, _, _ in rows] == [
        ("trial-00000", "1.5", "20"),
        ("trial-00001", "21"),
        ("trial-00002",),
    ]


def test_the_report_of_a_search_ranks_what_has_the_metric(sweep, tmp_path):
    report("sweep", sweep, tmp_path / "report.html", [])
    page = (tmp_path / "report.html").read_text()
    assert FD in page and "best of 1 trials of sweep" in page
