"""Figures are what their definitions say, whoever shares the work; pictures show what they should."""

import math
import threading
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data import manifest as manifests
from pipeline.data.batches import first_images
from pipeline.evaluation import pictures
from pipeline.evaluation.figures import BATCH, Evaluator
from pipeline.ranks import Ranks
from tests.pipeline.small import SHAPE, game
from vaegan import Autoencoder, build, config
from vaegan.metrics import fd_pca
from vaegan.networks.ports import DecoderNetwork

PIXELS = 32 * 32
NAMES = {"eval/fd_pca64/samples", "eval/fd_pca64/reconstructions", "eval/psnr/reconstructions"}


@pytest.fixture(scope="module")
def held_out(digits: str) -> Tensor:
    return first_images(digits, manifests.load(digits), "test", 300)


class Flat(DecoderNetwork):
    """A code is the image itself."""

    latent_size = PIXELS

    def forward(self, z_BZ: Tensor) -> Tensor:
        return self.logits(z_BZ)

    def logits(self, z_BZ: Tensor) -> Tensor:
        return z_BZ.unflatten(1, (1, 32, 32))


class Faithful(Autoencoder):
    """Reconstructs to the last bit, but for a constant error; samples are noise."""

    def __init__(self, error: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.decoder = Flat()
        self.error = error

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z_BZ: Tensor) -> Tensor:
        return self.decoder(z_BZ) + self.error


def figures(held_out: Tensor, model: Autoencoder, *, samples: int = 200, seed: int = 0) -> dict[str, float]:
    return Evaluator(held_out, samples, seed, Ranks()).figures(model)


def small_model() -> Autoencoder:
    torch.manual_seed(3)
    networks = config.Networks(family="mlp", latent=4, width=8, norm="none")
    return build(networks, config.Likelihood(kind="bernoulli"), (1, 32, 32)).autoencoder.eval()


def test_a_perfect_autoencoder_has_100_dB_and_no_distance(held_out):
    found = figures(held_out, Faithful())
    assert found.keys() == NAMES
    assert found["eval/psnr/reconstructions"] == 100
    assert abs(found["eval/fd_pca64/reconstructions"]) < 1e-6
    assert found["eval/fd_pca64/samples"] > 10


@pytest.mark.parametrize("error", [0.1, -0.01])
def test_a_constant_error_costs_its_decibels_and_its_square_along_the_components(held_out, error):
    found = figures(held_out, Faithful(error))
    assert found["eval/psnr/reconstructions"] == pytest.approx(-20 * math.log10(abs(error)), rel=1e-5)
    basis_XF = fd_pca.fit(held_out.float() / 255).basis_XF
    shift_F = torch.full((PIXELS,), error, dtype=torch.float64) @ basis_XF
    assert found["eval/fd_pca64/reconstructions"] == pytest.approx(float(shift_F.square().sum()), rel=1e-3)


def test_a_model_is_asked_for_the_same_codes_every_time(held_out):
    model = small_model()
    evaluator = Evaluator(held_out, 200, 5, Ranks())
    first = evaluator.figures(model)
    torch.randn(3)
    assert evaluator.figures(model) == first == figures(held_out, model, seed=5)
    other = figures(held_out, model, seed=6)
    assert other["eval/fd_pca64/samples"] != first["eval/fd_pca64/samples"]
    assert other["eval/psnr/reconstructions"] == first["eval/psnr/reconstructions"]


def test_an_evaluation_changes_nothing_in_the_model(held_out):
    model = small_model()
    before = [value.clone() for value in model.state_dict().values()]
    figures(held_out, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@dataclass
class Meeting:
    """Where threads that play ranks add up their tensors."""

    world: int
    brought: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world)

    def add(self, rank: int, tensors: tuple[Tensor, ...]) -> None:
        self.brought[rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait(30)
        for number, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([self.brought[other][number] for other in range(self.world)]).sum(0))
        self.barrier.wait(30)


@dataclass(frozen=True)
class Together(Ranks):
    """A rank in a thread."""

    meeting: Meeting | None = None

    def add(self, *tensors: Tensor) -> None:
        assert self.meeting is not None
        self.meeting.add(self.rank, tensors)


@pytest.mark.parametrize(("world", "samples", "images"), [(2, 2 * BATCH + 40, 300), (3, 50, 299), (4, 3, 64)])
def test_figures_do_not_depend_on_how_many_share_the_work(held_out, world, samples, images):
    model, meeting = small_model(), Meeting(world)
    alone = Evaluator(held_out[:images], samples, 1, Ranks()).figures(model)
    found: list[dict[str, float]] = [{}] * world

    def work(rank: int) -> None:
        ranks = Together(rank, world, meeting=meeting)
        found[rank] = Evaluator(held_out[:images], samples, 1, ranks).figures(model)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(one == found[0] for one in found)
    assert found[0] == pytest.approx(alone, rel=1e-6)


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
