"""Who looks at models: fixed batches of images and codes go in, features and numbers of each image come out.

Models and extractors see the same batches whoever computes them: batch k of a list goes to rank k % world. Noise
depends on the seed and the batch alone. N held-out images, M samples, F features, Z latent, B batch.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.chance import generator
from pipeline.evaluation import similarity
from pipeline.evaluation.extractors import Extractor
from pipeline.evaluation.held_out import HeldOut
from pipeline.evaluation.seen import Seen
from pipeline.ranks import Ranks
from pipeline.settings import SIMILARITIES
from vaegan import Autoencoder
from vaegan.metrics.bounds import bits_per_dim, importance_nats, infer
from vaegan.metrics.latents import Latents
from vaegan.metrics.rows import Rows

BATCH = 256
BOUND_IMAGES, BOUND_DRAWS, BOUND_BATCH = 200, 32, 16
"""Of the importance-weighted bound: images, draws for each, images at a time."""
DEQUANTISED = 1_000
"""Most images that bits per dimension are measured on."""


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


class Observer:
    """One rank's eyes: what it sees is summed over ranks."""

    def __init__(self, held_out: HeldOut, extractors: Sequence[Extractor], ranks: Ranks, seed: int) -> None:
        channels, height, width = held_out.images.shape[1:]
        self.similarities = similarity.measures((channels, height, width), ranks.device)
        self._held_out = held_out
        self._extractors = extractors
        self._ranks = ranks
        self._seed = seed

    def agree(self) -> None:
        """Leave out measures whose weights another rank's host lacks."""
        lacking = [name for name in SIMILARITIES if self._ranks.any(name not in self.similarities)]
        self.similarities = {name: of for name, of in self.similarities.items() if name not in lacking}

    @torch.no_grad()
    def reference(self) -> Seen:
        """The images that models are compared with; training images take the place of samples."""
        held_out, training = self._held_out.images, self._held_out.training
        seen = Seen(self._feature_rows("images", len(held_out)) | self._feature_rows("samples", len(training)))
        for of, images in {"images": held_out, "samples": training}.items():
            for start, pixels in self._batches(images):
                self._put_features(seen, of, start, _unit(pixels))
        return seen

    @torch.no_grad()
    def look(self, model: Model, codes: Codes) -> Seen:
        """A model, by its reconstructions and what it decodes codes to."""
        seen = self._nothing_yet(model, codes)
        for start, z_BZ in self._batches(codes.z_MZ):
            self._put_features(seen, "samples", start, model.decode(z_BZ))
        for start, pixels in self._batches(self._held_out.images):
            images = _unit(pixels)
            mean_BZ = model.encode(images)
            shown = model.decode(mean_BZ)
            seen.put("means", start, mean_BZ)
            self._put_features(seen, "reconstructions", start, shown)
            for name, measure in self.similarities.items():
                seen.put(name, start, measure.of(images, shown))
        if isinstance(model, Autoencoder):
            self._density(seen, model)
        return seen

    def _nothing_yet(self, model: Model, codes: Codes) -> Seen:
        """Room for everything, on every rank: one without a batch of its own adds zeros."""
        images, latent, device = len(self._held_out.images), codes.z_MZ.shape[1], self._ranks.device
        numbers, latents = dict.fromkeys(self.similarities, images), None
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

    def _density(self, seen: Seen, model: Autoencoder) -> None:
        assert seen.latents is not None
        images, latent = self._held_out.images, model.decoder.latent_size
        for start, pixels in self._batches(images):
            mean_BZ, z_BZ, elbo = infer(model, _unit(pixels), self._noise(start, len(pixels), latent))
            seen.latents.update(mean_BZ, z_BZ)
            seen.put("reconstruction_nats", start, elbo.reconstruction_B)
            seen.put("kl", start, elbo.kl_B)
        for start, pixels in self._batches(images[:BOUND_IMAGES], BOUND_BATCH):
            noise_KBZ = self._noise(start, BOUND_DRAWS, len(pixels), latent)
            seen.put("importance_nats", start, importance_nats(model, _unit(pixels), noise_KBZ))
        if "bits_per_dim" in seen.rows:
            for start, pixels in self._batches(images[:DEQUANTISED]):
                spread = torch.rand(pixels.shape, generator=generator(self._seed, "pixels", start)).to(pixels.device)
                dequantised = (pixels + spread) / 256
                elbo = infer(model, dequantised, self._noise(start, len(pixels), latent)).elbo
                seen.put("bits_per_dim", start, bits_per_dim(elbo.nelbo_B, prod(pixels.shape[1:])))

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
        return torch.randn(shape, generator=generator(self._seed, "noise", start)).to(self._ranks.device)


def _unit(pixels: Tensor) -> Tensor:
    """uint8 -> [0, 1]."""
    return pixels.float() / 255
