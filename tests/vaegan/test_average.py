"""The moving average halves its distance to new weights every half life."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vaegan.average import MovingAverage, moving_average


def fill(network: nn.Module, value: float) -> None:
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)


def averaged(average: MovingAverage) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in average.module.parameters()])


@pytest.mark.parametrize(("half_life", "batch"), [(640, 64), (64, 64), (1000, 8)])
def test_after_a_half_life_half_of_the_distance_is_left(half_life: int, batch: int) -> None:
    network = nn.Linear(2, 3)
    average = moving_average(network, half_life, batch)
    fill(network, 1.0)
    for _ in range(20 * half_life // batch):  # until it is no longer young
        average.update()
    fill(network, 5.0)
    for _ in range(half_life // batch):
        average.update()
    torch.testing.assert_close(averaged(average), torch.full((9,), 5.0 + (1.0 - 5.0) / 2))


def test_a_young_average_reaches_back_over_a_tenth_of_the_training() -> None:
    network = nn.Linear(2, 3)
    average = moving_average(network, 1_000_000, 64)
    for update in range(1, 1001):
        fill(network, float(update))
        average.update()
    torch.testing.assert_close(averaged(average), torch.full((9,), 900.1))


def test_without_a_half_life_the_newest_weights_are_kept() -> None:
    network = nn.Linear(2, 3)
    average = moving_average(network, 0, 64)
    for value in (2.0, 3.0, 5.0):
        fill(network, value)
        average.update()
        assert torch.equal(averaged(average), torch.full((9,), value))


def test_the_average_is_torchs_bit_for_bit() -> None:
    network = nn.Linear(2, 3)
    average = moving_average(network, 500, 64)

    def blend(module: list[torch.Tensor], network: list[torch.Tensor], n: "torch.Tensor | int") -> None:
        get_ema_multi_avg_fn(min(0.5 ** (64 / 500), int(n) / (int(n) + 9)))(module, network, n)  # type: ignore[arg-type]

    theirs = AveragedModel(network, multi_avg_fn=blend)
    for _ in range(200):
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        average.update()
        theirs.update_parameters(network)
        assert torch.equal(averaged(average), torch.cat([p.flatten() for p in theirs.module.parameters()]))


def test_the_average_leaves_the_trained_weights_alone_and_takes_no_gradient() -> None:
    network = nn.Linear(2, 3)
    average = moving_average(network, 64, 64)
    for value in (1.0, 5.0):
        fill(network, value)
        average.update()
    assert torch.equal(network.weight.data, torch.full((3, 2), 5.0))
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
