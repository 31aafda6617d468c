"""Work beside training: one job at a time, and what goes wrong in it is heard."""

import threading

import pytest

from pipeline.training.background import Background


def test_a_job_goes_on_beside_its_caller_until_it_is_settled() -> None:
    background, gate, done = Background(), threading.Event(), []
    background.start(lambda: (gate.wait(10), done.append("job"))[1])
    assert background.busy and done == []
    gate.set()
    background.settle()
    assert not background.busy and done == ["job"]
    background.settle()  # nothing is left to wait for


def test_what_a_job_raises_comes_out_when_it_is_settled_and_only_then() -> None:
    background = Background()

    def fail() -> None:
        raise OSError("disk full")

    background.start(fail)
    with pytest.raises(OSError, match="disk full"):
        background.settle()
    background.settle()
    background.start(lambda: None)
    background.settle()
