"""Streaming figures against closed forms. N images, X pixels, F features."""

import pytest
import torch
from torch import Tensor

from tests.vaegan.small import add_up
from vaegan.metrics import fd_pca
from vaegan.metrics.moments import Moments, diversity, frechet_distance, merged
from vaegan.metrics.psnr import psnr


def moments_of(mean_F: Tensor, covariance_FF: Tensor, count: int = 1000) -> Moments:
    """A stream of exactly this mean and unbiased covariance, without any rows."""
    moments = Moments(len(mean_F))
    moments.count += count
    moments.total_F += count * mean_F
    moments.outer_FF += (count - 1) * covariance_FF + count * torch.outer(mean_F, mean_F)
    return moments


def covariance(features: int) -> Tensor:
    root_FF = torch.randn(features, features)
    return root_FF @ root_FF.T + 0.1 * torch.eye(features)


def streamed(*shards: Tensor) -> Moments:
    """One stream a shard, added up."""
    first, *others = (Moments(shards[0].shape[1]) for _ in shards)
    for moments, rows_NF in zip((first, *others), shards, strict=True):
        for rows_BF in rows_NF.split(7):
            moments.update(rows_BF)
    add_up(first, *others)
    return first


def test_moments_made_by_hand_are_exact() -> None:
    mean_F, covariance_FF = torch.randn(6), covariance(6)
    torch.testing.assert_close(moments_of(mean_F, covariance_FF).mean_F, mean_F)
    torch.testing.assert_close(moments_of(mean_F, covariance_FF).covariance_FF, covariance_FF)


def test_the_distance_of_commuting_gaussians_is_that_of_their_standard_deviations() -> None:
    means, variances = torch.randn(2, 6), torch.rand(2, 6) + 0.1
    axes_FF = torch.linalg.qr(torch.randn(6, 6)).Q
    a, b = (moments_of(mean, axes_FF * variance @ axes_FF.T) for mean, variance in zip(means, variances, strict=True))
    closed_form = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    torch.testing.assert_close(torch.tensor(frechet_distance(a, b)), closed_form, rtol=1e-9, atol=0)


def test_the_distance_of_any_gaussians_takes_the_root_of_the_product() -> None:
    (mean_a, mean_b), a_FF, b_FF = torch.randn(2, 6), covariance(6), covariance(6)
    assert not torch.allclose(a_FF @ b_FF, b_FF @ a_FF)
    values, vectors = torch.linalg.eig(a_FF @ b_FF)
    root_FF = (vectors @ values.sqrt().diag() @ torch.linalg.inv(vectors)).real
    torch.testing.assert_close(root_FF @ root_FF, a_FF @ b_FF)
    closed_form = (mean_a - mean_b).square().sum() + (a_FF + b_FF - 2 * root_FF).trace()
    distance = frechet_distance(moments_of(mean_a, a_FF), moments_of(mean_b, b_FF))
    torch.testing.assert_close(torch.tensor(distance), closed_form, rtol=1e-8, atol=0)
    assert distance == pytest.approx(frechet_distance(moments_of(mean_b, b_FF), moments_of(mean_a, a_FF)), rel=1e-9)


def test_the_parts_of_a_stream_merge_to_the_bits_of_the_stream() -> None:
    rows_NF = torch.randn(50, 6)
    parts = [streamed(part_NF) for part_NF in rows_NF.split(7)]
    for one, other in zip(merged(parts).tensors(), streamed(rows_NF).tensors(), strict=True):
        assert torch.equal(one, other)


def test_a_set_is_at_no_distance_from_itself() -> None:
    rows_NF = torch.randn(50, 6) @ covariance(6)
    assert abs(frechet_distance(streamed(rows_NF), streamed(rows_NF.flip(0)))) < 1e-6


def test_a_set_in_a_plane_is_at_no_distance_from_itself() -> None:
    rows_NF = torch.randn(50, 2) @ torch.randn(2, 6)
    assert abs(frechet_distance(streamed(rows_NF), streamed(rows_NF))) < 1e-6


def test_diversity_is_the_ratio_of_total_variances() -> None:
    rows_NF = torch.randn(50, 3)
    real = streamed(rows_NF)
    assert diversity(real, streamed(2 * rows_NF + 1)) == pytest.approx(4)
    assert diversity(real, streamed(rows_NF[:1].expand(50, 3))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sizes", [(60,), (25, 35), (1, 20, 39)])
def test_shards_that_are_added_up_equal_one_pass(sizes: tuple[int, ...]) -> None:
    rows_NF = torch.randn(60, 6) @ covariance(6) + 3
    merged = streamed(*rows_NF.split(sizes))
    torch.testing.assert_close(merged.count, torch.tensor(60.0))
    torch.testing.assert_close(merged.mean_F, rows_NF.mean(0))
    torch.testing.assert_close(merged.covariance_FF, torch.cov(rows_NF.T))


def test_moments_of_float32_rows_are_float64() -> None:
    rows_NF = (torch.randn(4096, 2) + 1000).float()
    torch.testing.assert_close(streamed(rows_NF).covariance_FF, torch.cov(rows_NF.double().T), rtol=1e-6, atol=1e-6)


def pictures(count: int, side: int) -> Tensor:
    """Images whose components fall off, so that the 64 leading ones are well told apart from the rest."""
    rows_NX = torch.randn(count, side**2) * 0.9 ** torch.arange(side**2)
    turned_NX = rows_NX @ torch.linalg.qr(torch.randn(side**2, side**2)).Q
    return (turned_NX + 0.5).view(count, 1, side, side)


@pytest.mark.parametrize(
    ("count", "side", "components"),
    [(300, 10, 64), (90, 10, 64), (100, 10, 64), (40, 10, 39), (300, 6, 36)],
    ids=["more images", "more pixels", "as many", "few images", "few pixels"],
)
def test_the_basis_is_that_of_the_singular_vectors(count: int, side: int, components: int) -> None:
    images = pictures(count, side)
    pca = fd_pca.fit(images)
    assert pca.basis_XF.shape == (side**2, components)
    torch.testing.assert_close(pca.basis_XF.T @ pca.basis_XF, torch.eye(components), atol=1e-8, rtol=0)
    rows_NX = images.flatten(1)
    torch.testing.assert_close(pca.mean_X, rows_NX.mean(0))
    right_FX = torch.linalg.svd(rows_NX - rows_NX.mean(0), full_matrices=False).Vh[:components]
    torch.testing.assert_close(pca.basis_XF @ pca.basis_XF.T, right_FX.T @ right_FX, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [8, 12], ids=["more images", "more pixels"])
def test_the_basis_is_orthonormal_though_images_repeat(side: int) -> None:
    images = pictures(10, side).repeat(10, 1, 1, 1)
    basis_XF = fd_pca.fit(images).basis_XF
    torch.testing.assert_close(basis_XF.T @ basis_XF, torch.eye(basis_XF.shape[1]), atol=1e-6, rtol=0)


def test_projections_are_centred_and_keep_the_variance_of_their_components() -> None:
    images = pictures(300, 10)
    rows_NF = fd_pca.fit(images).project(images)
    torch.testing.assert_close(rows_NF.mean(0), torch.zeros(64), atol=1e-10, rtol=0)
    values_F = torch.linalg.eigvalsh(torch.cov(images.flatten(1).T))[-64:]
    torch.testing.assert_close(rows_NF.var(0), values_F)


def test_the_distance_on_components_sees_a_shift_and_no_reordering() -> None:
    images = pictures(300, 10)
    pca = fd_pca.fit(images)
    held = streamed(pca.project(images))
    assert abs(frechet_distance(held, streamed(pca.project(images.flip(0))))) < 1e-6
    shift_X = 0.2 * pca.basis_XF[:, -1]
    shifted = streamed(pca.project(images + shift_X.view(1, 1, 10, 10)))
    assert frechet_distance(held, shifted) == pytest.approx(0.2**2, rel=1e-6)


def test_psnr_of_a_known_error() -> None:
    images = torch.rand(3, 1, 4, 5)
    error_B = torch.tensor([0.1, 0.01, 0.0])
    decibels = psnr(images, images + error_B.view(3, 1, 1, 1))
    torch.testing.assert_close(decibels, torch.tensor([20.0, 40.0, 100.0]))
