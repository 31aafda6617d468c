"""A training run without a cluster, files or evaluations: what quality is measured on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data import manifest as manifests
from pipeline.data.loader import Chance, Loader, feed_of
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from vaegan import VAEGAN, Autoencoder, build
from vaegan.average import moving_average
from vaegan.execution import Engine, Execution
from vaegan.objective import players, turns, weights_at
from vaegan.step import Turn

EVERY = ("discriminator", "generator", "autoencoder")


class Trained(NamedTuple):
    """What a run came to."""

    model: VAEGAN
    average: Autoencoder
    """Of the weights over time, as it is registered."""


def fresh_model(settings: Settings) -> VAEGAN:
    """A run's model before its first image."""
    shape = manifests.load(settings.data.path).shape
    torch.manual_seed(settings.seed)
    return build(settings.networks, settings.objective.likelihood, shape)


def trained(
    settings: Settings,
    moves: Sequence[str] = EVERY,
    change: Callable[[tuple[Turn, ...]], tuple[Turn, ...]] = lambda turns: turns,
    prepared: Callable[[VAEGAN], None] = lambda model: None,
    tell: Callable[[int, dict[str, float]], None] = lambda images, terms: None,
) -> Trained:
    """Train as the loop does, on one rank.

    moves: the turns that are taken: without `autoencoder` it is a GAN, with nothing else a VAE. change: to the turns,
    for what the settings don't offer. prepared: what is done to the model first. tell: hears of the terms
    every `log_every` images.
    """
    manifest = manifests.load(settings.data.path)
    model, batch = fresh_model(settings), settings.data.batch
    prepared(model)
    execution = Execution(precision="fp32" if settings.compute.precision == "fp32" else "bf16")
    everyone = players(model, settings.objective, settings.optimizers, precision=execution.dtype)
    taken = tuple(turn for turn in change(turns(settings.objective)) if turn.name in moves)
    engine = Engine(taken, everyone, execution)
    average = moving_average(everyone["autoencoder"].network, settings.average_half_life, batch)
    slopes = manifest.shape if settings.objective.penalty else None
    chance = Chance(
        settings.seed, batch, settings.networks.latent, slice(0, batch), flip=settings.data.flip, slopes=slopes
    )
    loader = Loader(feed_of(settings, manifest, Ranks()), chance, torch.device("cpu"))
    logged: list[Tensor] = []
    for seen in range(0, settings.stop.images, batch):
        _, images, noise = loader.at(seen)
        logged.append(engine(images, noise, weights_at(settings.objective, seen)))
        average.update()
        if seen // settings.log_every != (seen + batch) // settings.log_every:
            tell(seen + batch, dict(zip(engine.names, torch.stack(logged).mean(0).tolist(), strict=True)))
            logged = []
    averaged = average.module
    assert isinstance(averaged, Autoencoder)
    return Trained(model, averaged)
