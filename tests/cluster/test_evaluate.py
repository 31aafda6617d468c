"""An evaluation on several processes is that of one."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from pipeline.errors import Failure
from pipeline.evaluation.offline import evaluate_to
from pipeline.training import checkpoints
from tests.cluster.processes import wait_for
from tests.pipeline.small import record, run, tiny

pytestmark = pytest.mark.cluster


@pytest.fixture
def taken(cluster: str) -> Iterator[PlacementGroup]:
    """Both CPUs, held by another."""
    group = placement_group([{"CPU": 1}] * 2)
    ray.get(group.ready())
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) < 1)
    yield group
    remove_placement_group(group)


def test_processes_that_share_an_evaluation_find_what_training_found(cluster: str, digits: Path, tmp_path: Path):
    settings = tiny(str(digits), tmp_path, {"evaluation.images": 300, "evaluation.samples": 600})
    record(settings)
    path = run(settings).directory / "images-000000256"
    evaluate_to(str(path), str(digits), tmp_path, workers=2, out=tmp_path / "found.json")
    trained = checkpoints.evaluation_of(path)
    assert trained is not None
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["figures"] == pytest.approx(trained.figures, rel=1e-6)


def test_what_is_waited_for_and_what_failed_is_one_line_each(taken, digits: Path, tmp_path: Path, capsys):
    data = shutil.copytree(digits, tmp_path / "data")
    settings = tiny(str(data), tmp_path)
    record(settings)
    path = run(settings).directory / "images-000000256"
    said: list[str] = []

    def vanish() -> None:
        wait_for(lambda: "waits" in (said.append(capsys.readouterr().err) or "".join(said)))
        shutil.rmtree(data)
        remove_placement_group(taken)

    with ThreadPoolExecutor(1) as other:
        vanished = other.submit(vanish)
        with pytest.raises(Failure, match=r"^a part of the evaluation failed: .*no dataset.json there") as failed:
            evaluate_to(str(path), str(data), tmp_path, workers=2)
        vanished.result()
    assert "\n" not in str(failed.value)
    measuring, waiting = "".join(said).splitlines()
    assert measuring.startswith(f"{path}: measuring ")
    assert waiting == "--workers 2 waits for CPUs: 0 of the cluster's 2 are free"
