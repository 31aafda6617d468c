"""Pictures show what they should."""

import pytest
import torch
from PIL import Image

from pipeline.evaluation import pictures
from tests.pipeline.small import SHAPE, game


@pytest.mark.parametrize(
    ("count", "columns", "shape", "size", "mode"),
    [
        (10, 4, (1, 8, 8), (4 * 66, 3 * 66), "L"),
        (8, 8, (3, 64, 64), (8 * 66, 66), "RGB"),
        (1, 1, (1, 100, 100), (102, 102), "L"),
        (3, 8, (3, 24, 24), (8 * 50, 50), "RGB"),
    ],
)
def test_a_grid_has_a_place_for_every_image(count, columns, shape, size, mode):
    picture = pictures.grid(torch.rand(count, *shape), columns)
    assert (picture.size, picture.mode) == (size, mode)


def test_an_image_of_a_grid_stands_in_its_place_unchanged():
    shades = torch.arange(6).float().view(6, 1, 1, 1).expand(6, 1, 8, 8) / 8
    picture = pictures.grid(shades, 4)
    for index in range(6):
        row, column = divmod(index, 4)
        x, y = column * 66 + 1, row * 66 + 1
        cell = picture.crop((x, y, x + 64, y + 64))
        assert cell.getextrema() == (round(index / 8 * 255),) * 2
    assert picture.crop((2 * 66, 66, 4 * 66, 2 * 66)).getextrema() == (255, 255)


def test_pixels_beyond_black_and_white_are_cut_off_and_not_wrapped():
    assert pictures.grid(torch.full((1, 1, 64, 64), 1.2), 1).getpixel((5, 5)) == 255
    assert pictures.grid(torch.full((1, 1, 64, 64), -0.2), 1).getpixel((5, 5)) == 0


def test_samples_depend_on_the_seed_alone():
    model = game().state.model.autoencoder
    one = pictures.samples(model, 5, 3)
    torch.randn(7)
    assert torch.equal(one, pictures.samples(model, 5, 3))
    assert not torch.equal(one, pictures.samples(model, 5, 4))
    assert one.shape == (5, *SHAPE)


def test_originals_stand_above_their_reconstructions():
    model, originals = game().state.model.autoencoder, torch.rand(7, *SHAPE)
    rows = pictures.reconstructions(model, originals, columns=4)
    shown = model.reconstruct(originals)
    expected = torch.cat([originals[:4], shown[:4], originals[4:], shown[4:]])
    torch.testing.assert_close(rows, expected)


def test_an_interpolation_goes_from_one_reconstruction_to_the_other():
    model, originals = game().state.model.autoencoder, torch.rand(4, *SHAPE)
    rows = pictures.interpolation(model, originals, steps=5)
    assert rows.shape == (10, *SHAPE)
    torch.testing.assert_close(rows[[0, 4, 5, 9]], model.reconstruct(originals).detach())


def test_a_picture_is_saved_whole_below_folders_that_were_not_there(tmp_path):
    path = tmp_path / "a" / "b" / "grid.png"
    picture = pictures.grid(torch.rand(2, 1, 8, 8), 2)
    assert pictures.save(picture, path) == path
    with Image.open(path) as read:
        assert (read.format, read.tobytes()) == ("PNG", picture.tobytes())


def test_a_picture_that_cannot_be_saved_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "grid.png"
    pictures.save(Image.new("L", (4, 4)), path)
    whole = path.read_bytes()
    with pytest.raises(OSError, match="cannot write mode F as PNG"):
        pictures.save(Image.new("F", (4, 4)), path)
    assert path.read_bytes() == whole
    assert [left.name for left in tmp_path.iterdir()] == ["grid.png"]
