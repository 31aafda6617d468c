"""Figures of a model, and how each came about. N held-out images, M samples, F features, Z latent, B batch.

Models and extractors see fixed batches, whoever computes them: batch k of a list goes to rank k % world. Noise depends
on the seed and the batch alone, features are float32 and sums float64: the number of ranks makes no difference.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan, prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.data.manifest import Manifest
from pipeline.errors import Mistake
from pipeline.evaluation import estimate, similarity
from pipeline.evaluation.comparisons import COMPARISONS, Comparison, class_coverage
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.extractors import Extractor, open_extractor
from pipeline.evaluation.factors import disentanglement
from pipeline.evaluation.held_out import HeldOut, read
from pipeline.evaluation.protocol import Evaluation
from pipeline.evaluation.protocol import Protocol as How
from pipeline.evaluation.seen import Seen
from pipeline.ranks import Ranks
from pipeline.settings import FACTORS, SIMILARITIES, set_figure
from pipeline.settings import Evaluation as Settings
from vaegan import Autoencoder
from vaegan.metrics.bounds import bits_per_dim, importance_nats, infer
from vaegan.metrics.latents import Latents
from vaegan.metrics.rows import Rows

BATCH = 256
BOUND_IMAGES, BOUND_DRAWS, BOUND_BATCH = 200, 32, 16
"""Of the importance-weighted bound: images, draws for each, images at a time."""
DEQUANTISED = 1_000
"""Most images that bits per dimension are measured on."""
FACTOR_IMAGES = 2_000
"""Most images that disentanglement is measured on."""


class Model(Protocol):
    """What can be measured: ours, or any other. An `Autoencoder` is measured as a density too."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, Z) of images (B, C, H, W) in [0, 1]."""
        ...

    def decode(self, z_BZ: Tensor) -> Tensor:
        """The images of codes."""
        ...


class Codes(NamedTuple):
    """What samples are decoded from."""

    sampler: str
    """`prior`, or what else they are draws from."""
    z_MZ: Tensor


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
        channels, height, width = held_out.images.shape[1:]
        self._similarities = similarity.measures((channels, height, width), self._ranks.device)
        self._groups = [*self._of_sets(), *self._of_images(), *self._of_latents()]
        self._reference: Seen | None = None
        self._floors: dict[str, Estimate] = {}

    @property
    def absent(self) -> dict[str, str]:
        """Figures that these images, or so few samples, can't give, and why."""
        return {name: group.lacking for group in self._groups if group.lacking for name in group.names}

    def require(self, metric: str) -> None:
        """Raise Mistake where these images, or so few samples, can't give the figure that checkpoints are ranked by."""
        if metric in self.absent:
            raise Mistake(f"checkpoints.metric is {metric!r}: {self.absent[metric]}")

    def prior(self, latent: int) -> Codes:
        """Draws from N(0, I), the same for every model of a latent size."""
        generator = torch.Generator().manual_seed(self._seed)
        return Codes("prior", torch.randn(self._samples, latent, generator=generator))

    def evaluate(self, model: Model, codes: Codes) -> Evaluation:
        """All that can be said of a model: all ranks together, and the same on each."""
        if self._reference is None:
            reference = self.see_reference()
            self._ranks.add(*reference.tensors())
            self.refer_to(reference)
        seen = self.see(model, codes)
        self._ranks.add(*seen.tensors())
        return self.conclude(seen, codes.sampler)

    @torch.no_grad()
    def see_reference(self) -> Seen:
        """This rank's part of the images that models are compared with; training images take the place of samples."""
        held_out, training = self.held_out.images, self.held_out.training
        seen = Seen(self._feature_rows("images", len(held_out)) | self._feature_rows("samples", len(training)))
        for of, images in {"images": held_out, "samples": training}.items():
            for start, pixels in self._batches(images):
                self._put_features(seen, of, start, _unit(pixels))
        return seen

    def refer_to(self, reference: Seen) -> None:
        """Compare with the sum of all ranks' parts from now on. Ranks find the floors together."""
        self._reference = reference
        enough = len(self.held_out.training) >= len(self.held_out.images)
        self._floors = self._estimates(reference) if enough else {}

    @torch.no_grad()
    def see(self, model: Model, codes: Codes) -> Seen:
        """This rank's part of a model."""
        seen = self._nothing_yet(model, codes)
        for start, z_BZ in self._batches(codes.z_MZ):
            self._put_features(seen, "samples", start, model.decode(z_BZ))
        for start, pixels in self._batches(self.held_out.images):
            images = _unit(pixels)
            mean_BZ = model.encode(images)
            shown = model.decode(mean_BZ)
            seen.put("means", start, mean_BZ)
            self._put_features(seen, "reconstructions", start, shown)
            for name, measure in self._similarities.items():
                seen.put(name, start, measure.of(images, shown))
        if isinstance(model, Autoencoder):
            self._see_density(seen, model)
        return seen

    def conclude(self, seen: Seen, sampler: str) -> Evaluation:
        """What the sum of all ranks' parts comes to. Ranks find that together too."""
        found = self._estimates(seen)
        hows = {name: group.how for group in self._groups for name in group.names if name in found}
        for name, how in hows.items():
            drawn = {"sampler": sampler} if "samples" in how else {}
            floor = self._floors[name].value if name in self._floors else None
            noise = found[name].noise
            hows[name] = {**how, **drawn, "floor": floor, "noise": None if isnan(noise) else noise}
        return Evaluation(figures={name: figure.value for name, figure in found.items()}, protocols=hows)

    def _nothing_yet(self, model: Model, codes: Codes) -> Seen:
        """Room for everything, on every rank: one without a batch of its own adds zeros."""
        images, latent, device = len(self.held_out.images), codes.z_MZ.shape[1], self._ranks.device
        numbers, latents = dict.fromkeys(self._similarities, images), None
        if isinstance(model, Autoencoder):
            numbers |= {"reconstruction_nats": images, "kl": images, "importance_nats": min(images, BOUND_IMAGES)}
            if model.likelihood.settings.kind == "gaussian":
                numbers["bits_per_dim"] = min(images, DEQUANTISED)
            latents = Latents(latent, device)
        return Seen(
            self._feature_rows("samples", len(codes.z_MZ))
            | self._feature_rows("reconstructions", images)
            | {"means": Rows(images, latent, device)}
            | {name: Rows(count, 1, device) for name, count in numbers.items()},
            latents,
        )

    def _see_density(self, seen: Seen, model: Autoencoder) -> None:
        assert seen.latents is not None
        images, latent = self.held_out.images, model.decoder.latent_size
        for start, pixels in self._batches(images):
            mean_BZ, log_var_BZ, z_BZ, elbo = infer(model, _unit(pixels), self._noise(start, len(pixels), latent))
            seen.latents.update(mean_BZ, log_var_BZ, z_BZ)
            seen.put("reconstruction_nats", start, elbo.reconstruction_B)
            seen.put("kl", start, elbo.kl_B)
        for start, pixels in self._batches(images[:BOUND_IMAGES], BOUND_BATCH):
            noise_KBZ = self._noise(start, BOUND_DRAWS, len(pixels), latent)
            seen.put("importance_nats", start, importance_nats(model, _unit(pixels), noise_KBZ))
        if "bits_per_dim" in seen.rows:
            for start, pixels in self._batches(images[:DEQUANTISED]):
                spread = torch.rand(pixels.shape, generator=self._generator("pixels", start)).to(pixels.device)
                dequantised = (pixels + spread) / 256
                elbo = infer(model, dequantised, self._noise(start, len(pixels), latent)).elbo
                seen.put("bits_per_dim", start, bits_per_dim(elbo.nelbo_B, prod(pixels.shape[1:])))

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
                        applies=partial(_has, f"{of}/{extractor.name}"),
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
        few = f"of images of {side} px and with the weights here there are {', '.join(self._similarities)}"
        for name in SIMILARITIES:
            measure = self._similarities.get(name)
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
        images, factors_NK = len(self.held_out.images), self.held_out.factors_NK
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
        few = "the data set has no columns of whole numbers that say what made an image"
        yield Group(
            names=tuple(f"eval/{name}/latents" for name in FACTORS),
            applies=lambda seen: _has("means", seen) and seen["means"].shape[1] > 1,
            how=self._how(min(images, FACTOR_IMAGES), seed=self._seed),
            estimates=self._disentanglement,
            lacking="" if factors_NK.shape[1] else few,
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
        codes_NZ, factors_NK = seen["means"][:FACTOR_IMAGES], self.held_out.factors_NK[:FACTOR_IMAGES]
        found = disentanglement(codes_NZ.cpu().numpy(), factors_NK.numpy(), self._seed)
        return [Estimate(found[name]) for name in FACTORS]

    def _feature_rows(self, of: str, count: int) -> dict[str, Rows]:
        return {
            f"{of}/{extractor.name}": Rows(count, extractor.features, self._ranks.device)
            for extractor in self._extractors
        }

    def _put_features(self, seen: Seen, of: str, start: int, images: Tensor) -> None:
        for extractor in self._extractors:
            seen.put(f"{of}/{extractor.name}", start, extractor(images))

    def _batches(self, rows: Tensor, size: int = BATCH) -> Iterator[tuple[int, Tensor]]:
        """This rank's batches, each with the number of its first row."""
        for start in range(self._ranks.rank * size, len(rows), self._ranks.world * size):
            yield start, rows[start : start + size].to(self._ranks.device)

    def _noise(self, start: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator("noise", start)).to(self._ranks.device)

    def _generator(self, purpose: str, start: int) -> torch.Generator:
        mixed = hashlib.sha256(f"{purpose}/{self._seed}/{start}".encode()).digest()[:8]
        return torch.Generator().manual_seed(int.from_bytes(mixed, "big", signed=True))


def _unit(pixels: Tensor) -> Tensor:
    """uint8 -> [0, 1]."""
    return pixels.float() / 255


def _has(name: str, seen: Seen) -> bool:
    return name in seen.rows


def _mean(name: str, seen: Seen) -> list[Estimate]:
    return [estimate.mean(seen[name])]
