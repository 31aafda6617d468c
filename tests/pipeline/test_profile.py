"""`vaegan profile`: a table, and a trace that Perfetto reads."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main

SMALL = ["--set", "networks.width=16", "--set", "data.batch=8", "--steps", "2"]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """First word of each line -> the rest of it."""
    assert main(["profile", *arguments]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) == 2}


def test_a_preset_is_profiled_without_data_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = told(capsys, "plain-mlp", *SMALL)
    assert "3 x 32 x 32" in lines["batch"] and "random: there is no data/digits" in lines["batch"]
    assert lines["schedule"] == "discriminator -> generator -> autoencoder"
    assert "GFLOP/s" in lines["arithmetic"] and "matmul" in lines["arithmetic"]
    shares = [float(lines[phase].split("%")[0]) for phase in ("data", "forward", "backward", "update", "other")]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert min(shares[1:4]) > 0
    assert {"aten::addmm", "aten::mm"} <= lines.keys()
    assert "ui.perfetto.dev" in lines["trace.json:"]


def test_the_trace_shows_the_phases_around_their_operators(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "digits.json"
    lines = told(capsys, "digits", "--set", f"data.path={digits}", "--out", str(trace), *SMALL)
    assert lines["batch"] == f"8 images of 1 x 32 x 32, {digits}"
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert {"data", "forward", "backward", "update", "aten::addmm"} <= set(names)
    assert names.count("update") == 2 * 3, "two steps, of two turns and a moving average"


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--out", "nowhere/trace.json"], "--out is 'nowhere/trace.json'"),
        (["--set", "objective.feature_layer=4", "--set", "objective.reconstruction=features"], "feature_layer is 4"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "plain-mlp", *arguments]) == 2
    errors = capsys.readouterr().err
    assert place in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
