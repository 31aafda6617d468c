"""Figures that compare row with row, against plain loops. N real rows, M fake rows, F features."""

from itertools import product
from statistics import fmean

import pytest
import torch
from torch import Tensor

from tests.vaegan.small import add_up
from vaegan.metrics import neighbours as compared
from vaegan.metrics.kernel import kernel_distances
from vaegan.metrics.neighbours import Neighbours, neighbours
from vaegan.metrics.rows import Rows


@pytest.mark.parametrize("sizes", [(60,), (25, 35), (1, 20, 39)])
def test_rows_filled_by_several_equal_those_filled_by_one(sizes: tuple[int, ...]) -> None:
    given_NF = torch.randn(60, 6, dtype=torch.float32)
    first, *others = (Rows(60, 6) for _ in sizes)
    start = 0
    for rows, shard in zip((first, *others), given_NF.split(sizes), strict=True):
        for batch in shard.split(7):
            rows.put(start, batch)
            start += len(batch)
    add_up(first, *others)
    assert torch.equal(first.rows_NF, given_NF)
    assert first.tensors()[0] is first.rows_NF


def kernel(a_F: Tensor, b_F: Tensor) -> float:
    return (sum(float(x * y) for x, y in zip(a_F, b_F, strict=True)) / len(a_F) + 1) ** 3


def double_sums(a_NF: Tensor, b_MF: Tensor) -> float:
    """Binkowski et al. 2018, eq. 4."""
    count, others = len(a_NF), len(b_MF)
    a = sum(kernel(a_NF[i], a_NF[j]) for i, j in product(range(count), repeat=2) if i != j)
    b = sum(kernel(b_MF[i], b_MF[j]) for i, j in product(range(others), repeat=2) if i != j)
    cross = sum(kernel(a_NF[i], b_MF[j]) for i, j in product(range(count), range(others)))
    return a / (count * (count - 1)) + b / (others * (others - 1)) - 2 * cross / (count * others)


def test_the_kernel_distance_is_its_double_sums() -> None:
    a_NF, b_MF = torch.randn(9, 4), torch.randn(7, 4) + 0.5
    assert kernel_distances(a_NF, b_MF, 1000).tolist() == pytest.approx([double_sums(a_NF, b_MF)], rel=1e-12)


def test_kernel_distances_are_of_blocks_that_hold_all_rows() -> None:
    a_NF, b_MF = torch.randn(11, 4), torch.randn(8, 4) + 0.5
    a_blocks, b_blocks = a_NF.split([6, 5]), b_MF.split([4, 4])
    expected = [double_sums(a, b) for a, b in zip(a_blocks, b_blocks, strict=True)]
    assert kernel_distances(a_NF, b_MF, 4).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_kernel_distance_of_one_distribution_from_itself_is_0_on_average() -> None:
    def distances(shift: float) -> Tensor:
        return kernel_distances(torch.randn(12_000, 4), torch.randn(12_000, 4) + shift, 30)

    same, other = distances(0), distances(0.5)
    error = same.std() / 400**0.5
    assert abs(same.mean()) < 3 * error
    assert (same < 0).any()
    assert other.mean() > 30 * error


def distance(a_F: Tensor, b_F: Tensor) -> float:
    return sum(float(x - y) ** 2 for x, y in zip(a_F, b_F, strict=True)) ** 0.5


def radii(rows_NF: Tensor, k: int) -> list[float]:
    count = range(len(rows_NF))
    return [sorted(distance(rows_NF[i], rows_NF[j]) for j in count if j != i)[k - 1] for i in count]


def spacing_by_loops(real_NF: Tensor, fake_MF: Tensor, k: int) -> float:
    count = min(len(real_NF), len(fake_MF))
    return fmean(radii(fake_MF[:count], k)) / fmean(radii(real_NF[:count], k))


def by_loops(real_NF: Tensor, fake_MF: Tensor, k: int) -> Neighbours:
    reals, fakes = range(len(real_NF)), range(len(fake_MF))
    apart = [[distance(real, fake) for fake in fake_MF] for real in real_NF]
    real_radii, fake_radii = radii(real_NF, k), radii(fake_MF, k)
    in_real = [[apart[i][j] <= real_radii[i] for j in fakes] for i in reals]
    return Neighbours(
        precision=sum(any(in_real[i][j] for i in reals) for j in fakes) / len(fakes),
        recall=sum(any(apart[i][j] <= fake_radii[j] for j in fakes) for i in reals) / len(reals),
        density=sum(in_real[i][j] for i in reals for j in fakes) / (k * len(fakes)),
        coverage=sum(any(in_real[i]) for i in reals) / len(reals),
        spacing=spacing_by_loops(real_NF, fake_MF, k),
    )


def test_spacing_is_that_of_as_many_on_either_side() -> None:
    rows_NF = torch.randn(300, 3)
    for real_NF, fake_MF in ((rows_NF, rows_NF[:30]), (rows_NF[:30], rows_NF)):
        assert neighbours(real_NF, fake_MF, 10)[0].spacing == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_neighbours_are_those_that_plain_loops_find(k: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "BLOCK", 7)
    real_NF, fake_MF = torch.randn(30, 3) + offset, torch.randn(25, 3) + 1.5 + offset
    (found,) = neighbours(real_NF, fake_MF, k=k)
    *shares, spacing = by_loops(real_NF, fake_MF, k)
    assert found[:-1] == pytest.approx(shares, rel=1e-12)
    assert found.spacing == pytest.approx(
        spacing, rel=1e-6 if offset else 1e-12
    )  # float64 less what offsets take of it
    assert 0 < min(shares) < max(shares) < 1


@pytest.mark.parametrize("parts", [2, 3, 10])
def test_without_a_part_it_is_what_the_others_alone_give(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "BLOCK", 7)
    real_NF, fake_MF = torch.randn(30, 3), torch.randn(26, 3) + 0.5
    split = fake_MF.tensor_split(parts)
    chosen = [fake_MF, *(torch.cat([*split[:gone], *split[gone + 1 :]]) for gone in range(parts))]
    for found, alone in zip(neighbours(real_NF, fake_MF, parts, k=3), chosen, strict=True):
        assert found[:-1] == pytest.approx(by_loops(real_NF, alone, 3)[:-1], rel=1e-12)
        assert found.spacing == pytest.approx(fmean(radii(alone, 3)) / fmean(radii(real_NF[:26], 3)), rel=1e-12)


def test_a_set_covers_itself() -> None:
    rows_NF = torch.randn(50, 4)
    (found,) = neighbours(rows_NF, rows_NF.flip(0))
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.spacing == pytest.approx(1)
    assert 5 / 5 <= found.density <= 6 / 5  # itself and five neighbours, of which the fifth is on the border


def test_sets_far_apart_share_nothing() -> None:
    ((*shares, _),) = neighbours(torch.randn(50, 4), torch.randn(40, 4) + 100)
    assert shares == [0, 0, 0, 0]


def test_a_mode_that_is_never_drawn_costs_recall_and_coverage_and_not_precision() -> None:
    mode_NF, other_NF = torch.randn(2, 200, 2)
    (found,) = neighbours(torch.cat([mode_NF, other_NF + 100]), torch.randn(400, 2))
    assert found.precision > 0.95
    assert 0.4 < found.recall <= 0.5
    assert 0.4 < found.coverage <= 0.5


def test_ten_images_drawn_over_and_over_vary_as_real_ones_do_and_lie_too_close() -> None:
    real_NF = torch.randn(200, 4)
    repeated_NF = real_NF[:10].repeat(20, 1)
    (found,) = neighbours(real_NF, repeated_NF)
    assert found.precision == 1
    assert repeated_NF.var(0).sum() > 0.5 * real_NF.var(0).sum()
    assert found.spacing < 1e-6
    ((*_, spacing),) = neighbours(real_NF, torch.cat([repeated_NF[:100], torch.randn(100, 4)]))
    assert 0.5 < spacing < 0.8, "the other half lies as thinly as half of the reals would"


def test_nothing_is_too_close_to_reals_that_all_have_twins() -> None:
    assert neighbours(torch.randn(1, 4).expand(20, 4), torch.randn(20, 4))[0].spacing == 1


def test_one_image_drawn_over_and_over_is_precise_and_covers_nearly_nothing() -> None:
    real_NF = torch.randn(200, 4)
    (found,) = neighbours(real_NF, real_NF[:1].expand(200, 4))
    assert found.precision == 1
    assert found.recall <= 1 / 200
    assert found.coverage < 0.1
