"""An evaluation on several processes is that of one."""

import json
from pathlib import Path

import pytest

from pipeline.evaluation.offline import evaluate_to
from pipeline.training import checkpoints
from tests.pipeline.small import record, run, tiny

pytestmark = pytest.mark.cluster


def test_processes_that_share_an_evaluation_find_what_training_found(cluster: str, digits: Path, tmp_path: Path):
    settings = tiny(str(digits), tmp_path, {"evaluation.images": 300, "evaluation.samples": 600})
    record(settings)
    path = run(settings).directory / "images-000000256"
    evaluate_to(str(path), str(digits), tmp_path, workers=2, out=tmp_path / "found.json")
    trained = checkpoints.evaluation_of(path)
    assert trained is not None
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["figures"] == pytest.approx(trained.figures, rel=1e-6)
