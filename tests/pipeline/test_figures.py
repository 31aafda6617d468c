"""Figures are what their definitions say, whoever shares the work, and each says how it came about."""

import math
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from pipeline.data import manifest as manifests
from pipeline.data.pixels import packed
from pipeline.data.prepare import prepare
from pipeline.data.sources import open_source
from pipeline.errors import Mistake
from pipeline.evaluation import estimate
from pipeline.evaluation import held_out as held_out_images
from pipeline.evaluation.comparisons import COMPARISONS, class_coverage
from pipeline.evaluation.extractors import Pca
from pipeline.evaluation.figures import Evaluator
from pipeline.evaluation.held_out import HeldOut, read
from pipeline.evaluation.observer import BATCH, Codes, Model
from pipeline.evaluation.protocol import Evaluation, how
from pipeline.ranks import Ranks
from pipeline.settings import FACTORS, SIMILARITIES
from pipeline.settings import Evaluation as EvaluationSettings
from pipeline.training.health import evaluated
from vaegan import Autoencoder, build, config
from vaegan.metrics import fd_pca
from vaegan.metrics.moments import Moments, frechet_distance

Column = npt.NDArray[np.generic] | pa.Array

PIXELS = 32 * 32
OF_ANY = {"eval/psnr/reconstructions", "eval/ssim/reconstructions"}
OF_A_DENSITY = {f"eval/{name}/images" for name in ("nelbo", "reconstruction_nats", "kl", "importance_nats")}
OF_LATENTS = {"eval/active_units/latents", "eval/aggregate_gap/latents"}
OF_PCA = {
    f"eval/{kind}_pca64/{of}"
    for kind in ("fd", "diversity", "precision", "recall", "density", "coverage", "spacing")
    for of in ("samples", "reconstructions")
}


@pytest.fixture(scope="module")
def held_out(digits: str) -> HeldOut:
    settings = EvaluationSettings(images=300, samples=400)
    return read(digits, manifests.load(digits), settings)


class Faithful(nn.Module):
    """No model of ours: a code is the image itself. Reconstructs to the last bit, but for a constant error."""

    def __init__(self, error: float = 0.0, side: int = 32) -> None:
        super().__init__()
        self.error = error
        self.side = side

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z_BZ: Tensor) -> Tensor:
        return z_BZ.unflatten(1, (1, self.side, self.side)) + self.error


def evaluator(held_out: HeldOut, samples: int = 400, ranks: Ranks | None = None, seed: int = 0) -> Evaluator:
    return Evaluator(held_out, [Pca(held_out.images)], samples, ranks, seed)


def evaluation(held_out: HeldOut, model: Model, latent: int = PIXELS) -> Evaluation:
    measure = evaluator(held_out)
    return measure.evaluate(model, measure.prior(latent))


def small_model(kind: str = "bernoulli") -> Autoencoder:
    torch.manual_seed(3)
    networks = config.Networks(family="mlp", latent=4, width=8, norm="none")
    likelihood = config.Likelihood(kind="gaussian" if kind == "gaussian" else "bernoulli")
    return build(networks, likelihood, (1, 32, 32)).autoencoder.eval()


def test_a_perfect_autoencoder_has_100_dB_and_no_distance(held_out):
    found = evaluation(held_out, Faithful()).figures
    assert found.keys() == OF_ANY | OF_PCA
    assert found["eval/psnr/reconstructions"] == 100
    assert found["eval/ssim/reconstructions"] == pytest.approx(1)
    assert abs(found["eval/fd_pca64/reconstructions"]) < 1e-6
    for kind in ("diversity", "spacing"):
        assert found[f"eval/{kind}_pca64/reconstructions"] == pytest.approx(1)
    assert found["eval/coverage_pca64/reconstructions"] == found["eval/precision_pca64/reconstructions"] == 1
    assert found["eval/fd_pca64/samples"] > 10
    assert found["eval/coverage_pca64/samples"] < 0.1


@pytest.mark.parametrize("error", [0.1, -0.01])
def test_a_constant_error_costs_its_decibels_and_its_square_along_the_components(held_out, error):
    found = evaluation(held_out, Faithful(error)).figures
    assert found["eval/psnr/reconstructions"] == pytest.approx(-20 * math.log10(abs(error)), rel=1e-5)
    basis_XF = fd_pca.fit(held_out.images.float() / 255).basis_XF
    shift_F = torch.full((PIXELS,), error, dtype=torch.float64) @ basis_XF
    assert found["eval/fd_pca64/reconstructions"] == pytest.approx(float(shift_F.square().sum()), rel=1e-3)


def test_models_are_measured_without_tf32_and_what_was_allowed_before_is_afterwards(held_out):
    class Asked(Faithful):
        def decode(self, z_BZ: Tensor) -> Tensor:
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            return super().decode(z_BZ)

    torch.set_float32_matmul_precision("high")
    try:
        evaluation(held_out, Asked())
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_another_rank_can_not_measure_is_left_out_on_all(held_out):
    class BesideOneWithoutSsim(Ranks):
        asked: ClassVar[list[bool]] = []

        def any(self, flag: bool) -> bool:
            self.asked.append(flag)
            return flag or len(self.asked) == 1 + SIMILARITIES.index("ssim")

    measure = evaluator(held_out, ranks=BesideOneWithoutSsim())
    measure.agree()
    assert len(BesideOneWithoutSsim.asked) == len(SIMILARITIES), "every rank asks as often"
    with pytest.raises(Mistake, match="psnr"):
        measure.require("eval/ssim/reconstructions")
    assert "eval/ssim/reconstructions" not in measure.evaluate(Faithful(), measure.prior(PIXELS)).figures


def test_a_model_that_draws_training_images_is_at_the_floor(held_out):
    drawn = (held_out.training.float() / 255).flatten(1)
    found = evaluator(held_out).evaluate(Faithful(), Codes("training", drawn))
    for kind in ("fd", "diversity", "precision", "recall", "density", "coverage", "spacing"):
        name = f"eval/{kind}_pca64/samples"
        assert found.figures[name] == pytest.approx(found.protocols[name]["floor"], rel=1e-6)
    assert found.figures["eval/fd_pca64/samples"] < 5


def test_ten_images_made_over_and_over_vary_enough_and_are_called_mode_collapse(held_out):
    codes = Codes("ten", (held_out.training[:10].float() / 255).flatten(1).repeat(40, 1))
    found = evaluator(held_out).evaluate(Faithful(), codes).figures
    assert found["eval/diversity_pca64/samples"] > 0.5
    assert evaluated(found, PIXELS)["mode_collapse"] < 1e-6


def test_a_distance_is_that_of_the_features_moments(held_out):
    measure, model = evaluator(held_out), small_model()
    codes = measure.prior(4)
    found = measure.evaluate(model, codes)
    pca = Pca(held_out.images)
    real, fake = Moments(pca.features), Moments(pca.features)
    real.update(pca(held_out.images.float() / 255))
    fake.update(pca(model.decode(codes.z_MZ).detach()))
    assert found.figures["eval/fd_pca64/samples"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)


def test_a_floor_of_fewer_images_than_samples_says_of_how_many(held_out):
    few = replace(held_out, training=held_out.training[:150])
    assert len(few.training) < len(few.images)
    measure = evaluator(few)
    told = measure.evaluate(small_model(), measure.prior(4)).protocols
    assert told["eval/fd_pca64/samples"]["floor_samples"] == told["eval/recall_pca64/samples"]["floor_samples"] == 150
    assert told["eval/fd_pca64/samples"]["floor"] > 0
    assert all("floor_samples" not in one for one in evaluation(held_out, small_model(), 4).protocols.values())


def test_there_is_no_floor_of_too_few_training_images(held_out):
    measure = evaluator(replace(held_out, training=held_out.training[:99]))
    told = measure.evaluate(small_model(), measure.prior(4)).protocols
    assert told["eval/recall_pca64/samples"]["floor"] is None
    assert told["eval/fd_pca64/samples"]["floor"] > 0


def test_fewer_samples_than_held_out_images_have_a_floor(held_out):
    few = replace(held_out, training=held_out.training[:200])
    measure = evaluator(few, samples=200)
    told = measure.evaluate(small_model(), measure.prior(4)).protocols["eval/fd_pca64/samples"]
    assert told["floor"] > 0 and "floor_samples" not in told


@pytest.mark.parametrize(
    ("kind", "reals", "fakes", "scale", "shift"),
    [
        ("fd", 2000, 2000, 1.3, 0),
        ("kd", 2000, 2000, 1.3, 0),
        *((kind, *counts, 0.8, 0.7) for kind in COMPARISONS[2].kinds for counts in ((500, 500), (2000, 150))),
    ],
)
def test_the_noise_of_a_comparison_is_how_much_it_differs_over_draws(kind, reals, fakes, scale, shift):
    comparison = next(one for one in COMPARISONS if kind in one.kinds)
    generator = torch.Generator().manual_seed(0)
    real_NF = torch.randn(reals, 4, generator=generator)
    drawn = [scale * torch.randn(fakes, 4, generator=generator) + shift for _ in range(30)]
    found = [comparison.estimates(real_NF, fake_MF)[comparison.kinds.index(kind)] for fake_MF in drawn]
    spread = torch.tensor([one.value for one in found], dtype=torch.float64).std()
    told = sum(one.noise for one in found) / len(found)
    assert 0.6 * spread < told < 1.7 * spread


@pytest.mark.filterwarnings("error")
def test_a_kernel_distance_of_as_few_images_as_it_takes_has_noise():
    generator = torch.Generator().manual_seed(0)
    real_NF, fake_MF = torch.randn(2, COMPARISONS[1].least, 4, generator=generator)
    (found,) = COMPARISONS[1].estimates(real_NF, fake_MF)
    assert found.noise > 0


@pytest.mark.filterwarnings("error")
def test_of_too_few_images_no_noise_is_told():
    real_NF, fake_MF = torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(0))
    for fakes in (3, 9, 19):
        assert math.isnan(COMPARISONS[0].estimates(real_NF, fake_MF[:fakes])[0].noise)
    assert COMPARISONS[0].estimates(real_NF, fake_MF[:20])[0].noise > 0
    assert math.isnan(class_coverage(torch.arange(9)[:, None], torch.arange(9)[:, None], (9,)).noise)
    assert estimate.mean(torch.tensor([2.0])).value == 2
    assert math.isnan(estimate.mean(torch.tensor([2.0])).noise)


def test_nats_of_a_density_are_ordered_as_the_bounds_are(held_out):
    found = evaluation(held_out, small_model("gaussian"), 4).figures
    assert found.keys() == OF_ANY | OF_PCA | OF_A_DENSITY | OF_LATENTS | {"eval/bits_per_dim/images"}
    nelbo = found["eval/reconstruction_nats/images"] + found["eval/kl/images"]
    assert found["eval/nelbo/images"] == pytest.approx(nelbo, rel=1e-6)
    assert "eval/bits_per_dim/images" not in evaluation(held_out, small_model(), 4).figures


def test_a_figure_says_how_it_came_about(held_out):
    found = evaluation(held_out, small_model(), 4)
    assert found.protocols.keys() == found.figures.keys()
    told = found.protocols["eval/fd_pca64/samples"]
    assert how(told) == {
        "extractor": "pca64",
        "resize": "none",
        "data": held_out.digest,
        "split": "test",
        "images": 300,
        "samples": 400,
        "seed": 0,
        "sampler": "prior",
    }
    assert found.protocols["eval/importance_nats/images"]["images"] == 200
    assert found.protocols["eval/importance_nats/images"]["draws"] == 32
    assert found.protocols["eval/psnr/reconstructions"]["floor"] is None
    assert Evaluation.from_json(found.to_json()) == found


def test_a_model_is_asked_for_the_same_codes_every_time(held_out):
    model, measure = small_model(), evaluator(held_out, seed=5)
    first = measure.evaluate(model, measure.prior(4))
    torch.randn(3)
    assert measure.evaluate(model, measure.prior(4)) == first
    other = evaluator(held_out, seed=6)
    found = other.evaluate(model, other.prior(4)).figures
    assert found["eval/fd_pca64/samples"] != first.figures["eval/fd_pca64/samples"]
    assert found["eval/psnr/reconstructions"] == first.figures["eval/psnr/reconstructions"]


def test_an_evaluation_changes_nothing_in_the_model(held_out):
    model = small_model()
    before = [value.clone() for value in model.state_dict().values()]
    evaluation(held_out, model, 4)
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
    some = replace(held_out, images=held_out.images[:images])
    model, meeting = small_model("gaussian"), Meeting(world)
    found: list[Evaluation | None] = [None] * world

    def work(rank: int) -> None:
        measure = evaluator(some, samples, Together(rank, world, meeting=meeting))
        found[rank] = measure.evaluate(model, measure.prior(4))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    measure = evaluator(some, samples)
    alone = measure.evaluate(model, measure.prior(4))
    assert all(one == found[0] for one in found)
    assert found[0] is not None and found[0].figures == pytest.approx(alone.figures, rel=1e-6)


def test_parts_that_are_added_up_afterwards_give_the_same(held_out):
    model, whole = small_model(), evaluator(held_out)
    codes = whole.prior(4)
    alone = whole.evaluate(model, codes)
    parts = [evaluator(held_out, ranks=Ranks(rank, 3)) for rank in range(3)]
    references = [part.observer.reference() for part in parts]
    seen = [part.observer.look(model, codes) for part in parts]
    for sums in (references, seen):
        for other in sums[1:]:
            sums[0].add(other.tensors())
    again = evaluator(held_out)
    again.refer_to(references[0])
    assert again.conclude(seen[0], "prior").figures == pytest.approx(alone.figures, rel=1e-9)


def test_what_images_are_too_few_for_is_told_and_refused_as_the_metric(held_out):
    measure = evaluator(held_out, samples=50)
    assert measure.absent["eval/kd_pca64/samples"] == (
        "a kernel distance takes 1,000 images; there are 300 of the split 'test'"
    )
    assert measure.absent["eval/recall_pca64/samples"] == (
        "precision and recall take 100 images; evaluation.samples is 50"
    )
    assert "eval/recall_pca64/reconstructions" not in measure.absent
    with pytest.raises(Mistake, match=r"checkpoints.metric is 'eval/mig/latents': disentanglement takes two columns"):
        measure.require("eval/mig/latents")
    measure.require("eval/fd_pca64/samples")


def test_classes_are_covered_as_far_as_their_shares_agree():
    real_NK = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3] * 10).unsqueeze(1)
    assert class_coverage(real_NK, real_NK, (4,)).value == 1
    assert class_coverage(real_NK, real_NK % 2, (4,)).value == pytest.approx(0.5)
    assert class_coverage(real_NK, torch.full((50, 1), 3), (4,)).value == pytest.approx(0.25)
    two_NK = torch.cat([real_NK, real_NK], 1)
    assert class_coverage(two_NK, torch.cat([real_NK, real_NK % 2], 1), (4, 4)).value == pytest.approx(0.75)


def test_images_that_are_all_the_same_are_refused_in_one_line():
    with pytest.raises(Mistake, match="extractor pca64: the 5 held-out images are all the same"):
        Pca(torch.full((5, 1, 8, 8), 7, dtype=torch.uint8))


def with_columns(folder: Path, columns: dict[str, Column]) -> HeldOut:
    """600 images of noise and their columns, 500 of them held out."""
    field, pixels = packed(np.random.default_rng(0).integers(0, 255, (600, 1, 8, 8), np.uint8), "image")
    schema = pa.schema([field, *pa.table(columns).schema])
    pq.write_table(pa.table([pixels, *columns.values()], schema=schema), folder / "test-00000-of-00001.parquet")
    source = open_source("parquet", folder / "test-00000-of-00001.parquet")
    manifest = prepare(source, "parquet", folder / "data", size=8, progress=False)
    return read(str(folder / "data"), manifest, EvaluationSettings(images=500, samples=500))


def test_factors_are_columns_of_whole_numbers_that_are_neither_label_nor_number_of_a_row(tmp_path):
    numbers = np.arange(600)
    columns: dict[str, Column] = {
        "label": numbers % 10,
        "id": numbers,
        "row": numbers % 3,
        "side": numbers % 2,
        "sign": numbers % 4 == 0,
        "text": numbers.astype(str),
        "gaps": pa.array([None, *numbers[1:] % 2]),
    }
    found = with_columns(tmp_path, columns)
    first_P = torch.arange(500)
    assert torch.equal(found.factors_PK, torch.stack([first_P % 3, first_P % 2, (first_P % 4 == 0).long()], 1))
    assert len(found.training) == 0
    told = Evaluator(found, [Pca(found.images)], 500).evaluate(Faithful(side=8), Codes("noise", torch.rand(500, 64)))
    assert {f"eval/{name}/latents" for name in FACTORS} <= told.figures.keys()
    assert told.protocols["eval/mig/latents"]["factors"] == "row, side, sign"
    assert told.protocols["eval/fd_pca64/samples"]["floor"] is None


def test_columns_are_judged_on_the_images_that_are_scored_which_are_drawn_from_all(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out_images, "FACTOR_IMAGES", 200)
    numbers = np.arange(600)
    columns: dict[str, Column] = {
        "once": (numbers == 7).astype(int),
        "sorted": numbers // 300,
        "late": numbers // 193,
        "row": numbers % 3,
        "side": numbers % 2,
    }
    found = with_columns(tmp_path, columns)
    rows_P = found.factor_rows_P
    assert len(rows_P.unique()) == 200 and rows_P.max() > 400
    assert found.factors == ("sorted", "late", "row", "side")
    assert torch.equal(found.factors_PK, torch.stack([rows_P // 300, rows_P // 193, rows_P % 3, rows_P % 2], 1))
    told = Evaluator(found, [Pca(found.images)], 500).evaluate(Faithful(side=8), Codes("noise", torch.rand(500, 64)))
    assert all(math.isfinite(told.figures[f"eval/{name}/latents"]) for name in FACTORS)
    assert told.protocols["eval/mig/latents"]["images"] == 200


class Ill(Faithful):
    """Its weights are finite, and what it says of the images is not."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x) * torch.inf


def test_codes_that_are_not_finite_give_figures_that_are_not_and_no_error(tmp_path):
    numbers = np.arange(600)
    found = with_columns(tmp_path, {"row": numbers % 3, "side": numbers % 2})
    told = Evaluator(found, [Pca(found.images)], 500).evaluate(Ill(side=8), Codes("noise", torch.rand(500, 64)))
    assert all(math.isnan(told.figures[f"eval/{name}/latents"]) for name in FACTORS)
