"""Measures of likeness on images with known answers; our distances against torchmetrics'. B batch, F features."""

from hashlib import sha256

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models import alexnet as torchvisions_alexnet

from pipeline.evaluation.similarity import SCALES, alexnet, measures
from vaegan.metrics.kernel import kernel_distances
from vaegan.metrics.moments import Moments, frechet_distance
from vaegan.metrics.psnr import psnr
from vaegan.networks.ports import Shape

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """An empty TORCH_HOME, whatever this machine has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def measured(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    return {name: measure.of(images, reconstructions) for name, measure in measures(shape_of(images), CPU).items()}


def shape_of(images: Tensor) -> Shape:
    channels, height, width = images.shape[1:]
    return channels, height, width


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((1, 8, 40), {"psnr"}),
        ((3, 11, 11), {"psnr", "ssim"}),
        ((1, 63, 100), {"psnr", "ssim"}),
        ((1, 64, 64), {"psnr", "ssim", "ms_ssim"}),
        ((3, 256, 256), {"psnr", "ssim", "ms_ssim"}),
    ],
)
def test_measures_are_those_that_the_size_allows_and_equal_images_are_as_alike_as_can_be(shape, names):
    images = torch.rand(2, *shape)
    found = measured(images, images)
    assert found.keys() == names
    assert torch.equal(found.pop("psnr"), torch.full((2,), 100.0))
    for similar_B in found.values():
        torch.testing.assert_close(similar_B, torch.ones(2))


def test_flat_images_differ_in_luminance_alone():
    """SSIM is (2ab + c) / (a^2 + b^2 + c) there; MS-SSIM the same to the power of the coarsest scale's weight."""
    a_B, b_B = torch.tensor([[0.2, 0.5, 1.0], [0.3, 0.5, 0.0]], dtype=torch.float64)
    a, b = (flat_B.view(3, 1, 1, 1).expand(3, 1, 64, 64) for flat_B in (a_B, b_B))
    found, c = measured(a, b), 0.01**2
    luminance_B = (2 * a_B * b_B + c) / (a_B**2 + b_B**2 + c)
    torch.testing.assert_close(found["ssim"], luminance_B, rtol=1e-9, atol=0)
    coarsest = SCALES[2] / sum(SCALES[:3])
    torch.testing.assert_close(found["ms_ssim"], luminance_B**coarsest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", [32, 64])
def test_an_image_is_measured_alone_and_noise_costs_likeness(side):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, side, side, generator=generator)
    noise = torch.randn(3, 3, side, side, generator=generator) * torch.tensor([0.02, 0.1, 0.3]).view(3, 1, 1, 1)
    noisy = (images + noise).clamp(0, 1)
    found = measured(images, noisy)
    alone = [measured(images[index : index + 1], noisy[index : index + 1]) for index in range(3)]
    for name, similar_B in found.items():
        torch.testing.assert_close(similar_B, torch.cat([one[name] for one in alone]))
        assert similar_B.tolist() == sorted(similar_B.tolist(), reverse=True)


def test_lpips_is_torchmetrics_own_where_alexnet_is_at_hand():
    torch.manual_seed(0)
    alexnet().parent.mkdir(parents=True)
    with torch.device("meta"):  # shapes alone: the classifier is large, and LPIPS has no use for it
        shapes = torchvisions_alexnet(weights=None).state_dict()
    weights = {
        name: torch.zeros(like.shape, dtype=torch.float16)
        if name.startswith("classifier")
        else 0.05 * torch.randn(like.shape)
        for name, like in shapes.items()
    }
    torch.save(weights, alexnet())
    found = measures((3, 32, 32), CPU)
    assert found["lpips"].weights == sha256(alexnet().read_bytes()).hexdigest()
    images, others = torch.rand(2, 4, 3, 32, 32)
    expected_B = learned_perceptual_image_patch_similarity(images, others, "alex", reduction="none", normalize=True)
    torch.testing.assert_close(found["lpips"].of(images, others), expected_B)
    assert torch.equal(found["lpips"].of(images, images), torch.zeros(4))
    grey, other_grey = images[:1, :1], others[:1, :1]
    as_rgb = found["lpips"].of(grey.repeat(1, 3, 1, 1), other_grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found["lpips"].of(grey, other_grey), as_rgb)


class Identity(nn.Module):
    """An extractor for torchmetrics: images that are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, rows_BF: Tensor) -> Tensor:
        return rows_BF


def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a_NF, b_NF = torch.randn(2, 300, 12, generator=generator, dtype=torch.float64)
    return a_NF @ torch.randn(12, 12, generator=generator, dtype=torch.float64), b_NF + 0.3


def test_the_frechet_distance_is_that_of_torchmetrics_on_the_same_features():
    theirs = FrechetInceptionDistance(Identity(12)).set_dtype(torch.float64)
    ours = []
    for rows_NF, real in zip(features(), (True, False), strict=True):
        moments = Moments(12)
        for rows_BF in rows_NF.split(70):
            moments.update(rows_BF)
            theirs.update(rows_BF, real=real)
        ours.append(moments)
    assert frechet_distance(*ours) == pytest.approx(float(theirs.compute()), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_the_kernel_distance_is_that_of_torchmetrics_on_the_same_features():
    theirs = KernelInceptionDistance(Identity(12), subsets=1, subset_size=300).set_dtype(torch.float64)
    a_NF, b_NF = features()
    theirs.update(a_NF, real=True)
    theirs.update(b_NF, real=False)
    assert float(kernel_distances(a_NF, b_NF, 300)) == pytest.approx(float(theirs.compute()[0]), rel=1e-9)


def test_psnr_comes_first_and_is_ours():
    name, measure = next(iter(measures((1, 8, 8), CPU).items()))
    assert (name, measure.of, measure.weights) == ("psnr", psnr, None)
