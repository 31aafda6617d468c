from dataclasses import replace
from pathlib import Path

from pipeline.settings import load, presets
from tests.vaegan.two_ranks import Case, assert_two_ranks_equal_one


def a_narrow(preset: str) -> Case:
    settings = load(preset)
    width = settings.networks.width // 2
    return preset, replace(settings.networks, width=width, latent=8), settings.objective, settings.optimizers


def test_two_ranks_equal_one_in_every_preset(tmp_path: Path) -> None:
    assert_two_ranks_equal_one([a_narrow(preset) for preset in presets()], tmp_path, (1, 32, 32))
