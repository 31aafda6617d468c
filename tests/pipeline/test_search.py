"""A trial, in the process that Ray Tune gives it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import Failure
from pipeline.rundir import Journal, read_journal
from pipeline.settings import dump
from pipeline.training import launch
from pipeline.tuning import search
from tests.pipeline.small import tiny


@pytest.mark.parametrize(("ending", "told"), [("FINISHED", []), ("FAILED", ["the Ray cluster was lost"])])
def test_a_trial_that_the_search_stops_does_not_complain_of_its_lost_cluster(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, told: list[str]
) -> None:
    trial = tmp_path / "trial-00000"

    def dies(*_: object) -> None:
        Journal(trial).note(640, "status", ending)
        raise Failure("the Ray cluster was lost")

    monkeypatch.setattr(launch, "run", dies)
    monkeypatch.setattr(search.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "abc_00000"))
    monkeypatch.setattr(search, "TuneReportCallback", object)
    with pytest.raises(Failure):
        search.run_trial({}, dump(tiny(digits, tmp_path)), str(tmp_path), {})
    assert [event.body["text"] for event, _ in read_journal(trial, 0) if event.kind == "warning"] == told
