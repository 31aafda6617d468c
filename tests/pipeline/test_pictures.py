"""Pictures show what they say: one unit moved, the nearest images of all, nothing left out."""

import pytest
import torch
from torch import Tensor

from pipeline.evaluation import pictures
from tests.pipeline.small import SHAPE, game
from vaegan import Autoencoder


@pytest.fixture
def model() -> Autoencoder:
    return game().state.model.autoencoder


class Codes(Autoencoder):
    """An image of 1 x 1 x Z is its own code."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z_BZ: Tensor) -> Tensor:
        return z_BZ[:, None, None]


@pytest.fixture
def codes(model: Autoencoder) -> Autoencoder:
    return Codes(model.encoder, model.decoder, model.likelihood)


def test_a_traversal_moves_one_unit_from_minus_3_to_3_and_leaves_the_others(codes):
    original = torch.randn(1, 1, 4)
    rows = pictures.traversal(codes, original, torch.tensor([2, 0]), steps=5).view(2, 5, 4)
    expected = original.view(1, 1, 4).repeat(2, 5, 1)
    expected[0, :, 2] = expected[1, :, 0] = torch.tensor([-3, -1.5, 0, 1.5, 3])
    torch.testing.assert_close(rows, expected, rtol=0, atol=0)


def test_the_most_active_unit_is_the_one_whose_mean_varies_most_between_images(codes):
    spread = torch.tensor([0.1, 2, 0, 1])
    images = 5 + spread * torch.randn(50, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    assert pictures.most_active(codes, images).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("blocks", [[30], [1, 2, 3, 24], [15, 15]])
def test_the_nearest_in_blocks_are_the_nearest_of_all(blocks):
    rows_NF, others_MF = torch.randn(6, 5, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)
    distances, indices = pictures.nearest(rows_NF, others_MF.split(blocks), 4)
    everywhere = (rows_NF[:, None] - others_MF).square().sum(-1).sqrt().sort(dim=1)
    torch.testing.assert_close(distances, everywhere.values[:, :4])
    assert torch.equal(indices, everywhere.indices[:, :4])


def test_there_are_no_more_neighbours_than_images():
    _, indices = pictures.nearest(torch.zeros(2, 3), [torch.ones(1, 3), torch.ones(1, 3) / 2], 5)
    assert indices.tolist() == [[1, 0], [1, 0]]


def test_a_sample_learnt_by_heart_leads_the_neighbours_and_stands_beside_its_original():
    training = torch.randint(256, (40, *SHAPE), dtype=torch.uint8)
    drawn = torch.rand(9, *SHAPE)
    drawn[6] = pictures.unit(training[31])
    shown = pictures.neighbours(drawn, training, rows=2, count=3)
    first = pictures.grid(pictures.unit(training[31:32]), 1)
    left, beside = first.width, first.width + pictures.GAP
    assert shown.size == (beside + 3 * first.width, 2 * first.height)
    assert shown.crop((0, 0, left, first.height)).tobytes() == first.tobytes()
    assert shown.crop((beside, 0, beside + first.width, first.height)).tobytes() == first.tobytes()


def test_all_pictures_of_a_model_follow_from_the_seed(model):
    held_out, training = torch.randint(256, (2, 21, *SHAPE), dtype=torch.uint8)
    made = pictures.pictures_of(model, held_out, training, seed=1)
    torch.randn(3)
    again = pictures.pictures_of(model, held_out, training, seed=1)
    assert list(made) == ["samples", "reconstructions", "interpolations", "traversals", "units", "neighbours"]
    assert all(made[name].tobytes() == again[name].tobytes() for name in made)
    assert "neighbours" not in pictures.pictures_of(model, held_out, training[:0], seed=1)
    assert made.keys() - pictures.pictures_of(model, held_out[:1], training, seed=1).keys() == {"interpolations"}
    other = pictures.pictures_of(model, held_out, training, seed=2)
    assert {name for name in made if made[name].tobytes() != other[name].tobytes()} == {"samples", "neighbours"}
