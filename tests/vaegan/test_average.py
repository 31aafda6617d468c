"""The moving average halves its distance to new weights every half life."""

import pytest
import torch
from torch import nn

from vaegan.average import moving_average


def filled(value: float) -> nn.Linear:
    network = nn.Linear(2, 3)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


@pytest.mark.parametrize(("half_life", "batch"), [(640, 64), (64, 64), (1000, 8)])
def test_after_a_half_life_half_of_the_distance_is_left(half_life: int, batch: int) -> None:
    average = moving_average(filled(1.0), half_life, batch)
    average.update_parameters(filled(1.0))  # the first update of an AveragedModel copies
    for _ in range(half_life // batch):
        average.update_parameters(filled(5.0))
    for parameter in average.parameters():
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, 5.0 + (1.0 - 5.0) / 2))


def test_without_a_half_life_the_newest_weights_are_kept() -> None:
    average = moving_average(filled(1.0), 0, 64)
    for value in (2.0, 3.0, 5.0):
        average.update_parameters(filled(value))
        for parameter in average.parameters():
            assert torch.equal(parameter.data, torch.full_like(parameter, value))


def test_the_average_leaves_the_trained_weights_alone() -> None:
    network = filled(1.0)
    average = moving_average(network, 64, 64)
    average.update_parameters(filled(1.0))
    average.update_parameters(filled(5.0))
    assert torch.equal(network.weight.data, torch.ones(3, 2))
