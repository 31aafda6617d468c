"""What a person sees while a run goes on."""

from pathlib import Path

from pipeline.progress import progress_line
from pipeline.rundir import Journal


def test_the_line_says_what_it_waits_for_and_its_rate_is_that_of_training(tmp_path: Path, capsys) -> None:
    with progress_line(tmp_path, "photos", 1_000):
        Journal(tmp_path).metrics(512, {"train/autoencoder/kl": 2.0})
        Journal(tmp_path).metrics(1_024, {"train/autoencoder/kl": 3.0})
    first, *_, last = capsys.readouterr().err.strip().split("\r")
    assert "photos starts" in first and "0.00/1.00k" in first
    assert "photos: 100%" in last and "1.00k/1.00k" in last and "kl=3" in last
