"""Figures of a model, and how each came about. N images, F features, Z latent, K factors.

Features are float32 and sums float64: how many ranks share the work makes no difference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan

import torch

from pipeline.data.manifest import Manifest
from pipeline.errors import Mistake
from pipeline.evaluation import estimate
from pipeline.evaluation.comparisons import COMPARISONS, Comparison, class_coverage
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.extractors import Extractor, open_extractor
from pipeline.evaluation.factors import disentanglement
from pipeline.evaluation.held_out import LEAST, HeldOut, read
from pipeline.evaluation.observer import BOUND_DRAWS, BOUND_IMAGES, DEQUANTISED, Codes, Model, Observer
from pipeline.evaluation.protocol import Evaluation
from pipeline.evaluation.protocol import Protocol as How
from pipeline.evaluation.seen import Seen
from pipeline.ranks import Ranks
from pipeline.settings import FACTORS, SIMILARITIES, set_figure
from pipeline.settings import Evaluation as Settings
from vaegan.execution import exact


@dataclass(frozen=True, kw_only=True)
class Group:
    """Figures that are found together."""

    names: tuple[str, ...]
    applies: Callable[[Seen], bool]
    """Whether enough was seen of a model."""
    how: How
    estimates: Callable[[Seen], Sequence[Estimate]]
    """One for each name."""
    lacking: str = ""
    """Why these images, or so few samples, can't give it."""


def open_evaluator(data: str, manifest: Manifest, settings: Settings, ranks: Ranks | None = None) -> "Evaluator":
    """What measures models against a data set. Raises Mistake."""
    device = ranks.device if ranks else "cpu"
    extractors = [
        open_extractor(name, data, manifest, settings.split, settings.inception, device) for name in settings.extractors
    ]
    return Evaluator(read(data, manifest, settings), extractors, settings.samples, ranks)


class Evaluator:
    """Measures models against the same images, with the same codes and noise."""

    def __init__(
        self,
        held_out: HeldOut,
        extractors: Sequence[Extractor],
        samples: int,
        ranks: Ranks | None = None,
        seed: int = 0,
    ) -> None:
        """samples: how many a model is asked for. ranks: who share the work; by default this process alone."""
        self.held_out = held_out
        self._extractors = extractors
        self._samples = samples
        self._ranks = ranks or Ranks()
        self._seed = seed
        self.observer = Observer(held_out, extractors, self._ranks, seed)
        self._reference: Seen | None = None
        self._floors: dict[str, Estimate] = {}

    @property
    def absent(self) -> dict[str, str]:
        """Figures that these images, or so few samples, can't give, and why."""
        return {name: group.lacking for group in self._groups if group.lacking for name in group.names}

    def agree(self) -> None:
        """Measure what every rank has the weights for, and no more: all ranks together, before anything else."""
        self.observer.agree()

    def require(self, metric: str) -> None:
        """Raise Mistake where these images, or so few samples, can't give the figure that checkpoints are ranked by."""
        if metric in self.absent:
            raise Mistake(f"checkpoints.metric is {metric!r}: {self.absent[metric]}")

    def prior(self, latent: int) -> Codes:
        """Draws from N(0, I), the same for every model of a latent size."""
        generator = torch.Generator().manual_seed(self._seed)
        return Codes("prior", torch.randn(self._samples, latent, generator=generator))

    @exact()
    def evaluate(self, model: Model, codes: Codes) -> Evaluation:
        """All that can be said of a model: all ranks together, and the same on each, in float32 proper."""
        if self._reference is None:
            reference = self.observer.reference()
            self._ranks.add(*reference.tensors())
            self.refer_to(reference)
        seen = self.observer.look(model, codes)
        self._ranks.add(*seen.tensors())
        return self.conclude(seen, codes.sampler)

    def refer_to(self, reference: Seen) -> None:
        """Compare with the sum of all ranks' parts from now on. Ranks find the floors together."""
        self._reference = reference
        self._floors = self._estimates(reference)

    def conclude(self, seen: Seen, sampler: str) -> Evaluation:
        """What the sum of all ranks' parts comes to. Ranks find that together too."""
        found = self._estimates(seen)
        hows = {name: group.how for group in self._groups for name in group.names if name in found}
        for name, how in hows.items():
            drawn = {"sampler": sampler} if "samples" in how else {}
            noise = found[name].noise
            hows[name] = {**how, **drawn, **self._floor(name, how), "noise": None if isnan(noise) else noise}
        return Evaluation(figures={name: figure.value for name, figure in found.items()}, protocols=hows)

    def _floor(self, name: str, how: How) -> How:
        """With how many images there were for it, where these are fewer than samples."""
        if name not in self._floors:
            return {"floor": None}
        few = len(self.held_out.training) < int(how["samples"] or 0)
        return {"floor": self._floors[name].value} | ({"floor_samples": len(self.held_out.training)} if few else {})

    @property
    def _groups(self) -> list[Group]:
        return [*self._of_sets(), *self._of_images(), *self._of_latents()]

    def _of_sets(self) -> Iterator[Group]:
        """Sets of images, compared by their features."""
        images = len(self.held_out.images)
        for extractor in self._extractors:
            by = {"extractor": extractor.name, "resize": extractor.resize}
            by |= {"weights": extractor.weights} if extractor.weights else {}
            for comparison in COMPARISONS:
                looked_at = min(images, comparison.most or images)
                for of, count in (("samples", self._samples), ("reconstructions", images)):
                    drawn = {"samples": min(count, comparison.most or count), "seed": self._seed}
                    yield Group(
                        names=tuple(set_figure(kind, extractor.name, of) for kind in comparison.kinds),
                        applies=partial(_has, f"{of}/{extractor.name}", least=comparison.least),
                        how=self._how(looked_at, **by, **(drawn if of == "samples" else {})),
                        estimates=partial(self._compared, comparison, extractor.name, of),
                        lacking=self._too_few(comparison, count),
                    )
            if extractor.heads:
                yield Group(
                    names=("eval/class_coverage/samples",),
                    applies=partial(_has, f"samples/{extractor.name}"),
                    how=self._how(images, samples=self._samples, seed=self._seed, **by),
                    estimates=partial(self._classes, extractor),
                )

    def _of_images(self) -> Iterator[Group]:
        """Means over images."""
        images, side = len(self.held_out.images), " x ".join(map(str, self.held_out.images.shape[2:]))
        similarities = self.observer.similarities
        few = f"of images of {side} px and with the weights here there are {', '.join(similarities)}"
        for name in SIMILARITIES:
            measure = similarities.get(name)
            weights = {"weights": measure.weights} if measure and measure.weights else {}
            yield Group(
                names=(f"eval/{name}/reconstructions",),
                applies=partial(_has, name),
                how=self._how(images, **weights),
                estimates=partial(_mean, name),
                lacking="" if measure else few,
            )
        yield Group(
            names=("eval/nelbo/images",),
            applies=partial(_has, "kl"),
            how=self._how(images, seed=self._seed),
            estimates=lambda seen: [estimate.mean(seen["reconstruction_nats"] + seen["kl"])],
        )
        numbers: dict[str, How] = {
            "reconstruction_nats": self._how(images, seed=self._seed),
            "kl": self._how(images),
            "bits_per_dim": self._how(min(images, DEQUANTISED), seed=self._seed),
            "importance_nats": self._how(min(images, BOUND_IMAGES), seed=self._seed, draws=BOUND_DRAWS),
        }
        for name, how in numbers.items():
            yield Group(
                names=(f"eval/{name}/images",), applies=partial(_has, name), how=how, estimates=partial(_mean, name)
            )

    def _of_latents(self) -> Iterator[Group]:
        """What the codes of images are like."""
        images, factors_PK = len(self.held_out.images), self.held_out.factors_PK
        yield Group(
            names=("eval/active_units/latents",),
            applies=partial(_has, "kl"),
            how=self._how(images),
            estimates=lambda seen: [Estimate(seen.latents.active_units)] if seen.latents else [],
        )
        yield Group(
            names=("eval/aggregate_gap/latents",),
            applies=lambda seen: _has("kl", seen) and seen["means"].shape[1] < images,
            how=self._how(images, seed=self._seed),
            estimates=lambda seen: [Estimate(seen.latents.aggregate_gap)] if seen.latents else [],
        )
        few = (
            "disentanglement takes two columns of whole numbers, apart from the label, that say what made an image, "
            f"and each value of them on {LEAST} images"
        )
        yield Group(
            names=tuple(f"eval/{name}/latents" for name in FACTORS),
            applies=lambda seen: _has("means", seen) and seen["means"].shape[1] > 1,
            how=self._how(len(factors_PK), seed=self._seed, factors=", ".join(self.held_out.factors)),
            estimates=self._disentanglement,
            lacking="" if factors_PK.shape[1] else few,
        )

    def _how(self, images: int, **more: str | int) -> How:
        return {"data": self.held_out.digest, "split": self.held_out.split, "images": images, **more}

    def _too_few(self, comparison: Comparison, count: int) -> str:
        """The sentence that says so, where there are."""
        images, split, takes = len(self.held_out.images), self.held_out.split, f"{comparison.least:,} images"
        if images < comparison.least:
            return f"{comparison.called} {takes}; there are {images:,} of the split {split!r}"
        if count < comparison.least:
            return f"{comparison.called} {takes}; evaluation.samples is {count:,}"
        return ""

    def _estimates(self, seen: Seen) -> dict[str, Estimate]:
        """Of all groups that this is enough for; each by one rank, then told to all."""
        groups = [group for group in self._groups if not group.lacking and group.applies(seen)]
        names = [name for group in groups for name in group.names]
        found = torch.zeros(len(names), 2, dtype=torch.float64, device=self._ranks.device)
        for number, group in enumerate(groups):
            if number % self._ranks.world == self._ranks.rank:
                start = names.index(group.names[0])
                found[start : start + len(group.names)] = torch.tensor(group.estimates(seen), dtype=torch.float64)
        self._ranks.add(found)
        return {name: Estimate(*pair) for name, pair in zip(names, found.tolist(), strict=True)}

    def _compared(self, comparison: Comparison, extractor: str, of: str, seen: Seen) -> tuple[Estimate, ...]:
        assert self._reference is not None
        real_NF, fake_MF = self._reference[f"images/{extractor}"], seen[f"{of}/{extractor}"]
        return comparison.estimates(real_NF[: comparison.most], fake_MF[: comparison.most])

    def _classes(self, extractor: Extractor, seen: Seen) -> tuple[Estimate]:
        assert self._reference is not None
        real_NK = extractor.classes(self._reference[f"images/{extractor.name}"])
        return (class_coverage(real_NK, extractor.classes(seen[f"samples/{extractor.name}"]), extractor.heads),)

    def _disentanglement(self, seen: Seen) -> list[Estimate]:
        factors_PK = self.held_out.factors_PK
        codes_PZ = seen["means"][self.held_out.factor_rows_P]
        found = disentanglement(codes_PZ.cpu().numpy(), factors_PK.numpy(), self._seed)
        return [Estimate(found[name]) for name in FACTORS]


def _has(name: str, seen: Seen, least: int = 1) -> bool:
    return name in seen.rows and len(seen[name]) >= least


def _mean(name: str, seen: Seen) -> list[Estimate]:
    return [estimate.mean(seen[name])]
