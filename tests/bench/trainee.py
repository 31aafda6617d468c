"""Training runs without a cluster or files: what quality is measured on."""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from pipeline.data import manifest as manifests
from pipeline.data.loader import Chance, Loader, feed_of
from pipeline.ranks import Ranks
from pipeline.settings import Settings, Tree, merge, parse
from vaegan import VAEGAN, Autoencoder, build
from vaegan.average import moving_average
from vaegan.execution import Engine, Execution
from vaegan.objective import players, turns, weights_at
from vaegan.step import Turn

EVERY = ("discriminator", "generator", "autoencoder")


def arguments(script: str | None, *, images: int, out: str) -> argparse.ArgumentParser:
    """The options of a study; images: that each run sees, out: where their figures are kept, unless told."""
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a prepared data set with a classifier (`vaegan features train`)")
    parser.add_argument("--preset", default="fashion-mnist", help="of ours (default: fashion-mnist)")
    parser.add_argument("--images", type=int, default=images, help=f"seen by each (default: {images:,})")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"what is kept (default: {out})")
    parser.add_argument("--only", default="", help="those whose names hold this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trained at a time, a thread each")
    return parser


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes of one thread each."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))


def settings_of(recipe: Tree, given: argparse.Namespace, seed: int) -> Settings:
    """A recipe on the data set, for as many images, measured by what its labels teach and by principal components."""
    run = {
        "name": "bench",
        "seed": seed,
        "data": {"path": given.data},
        "stop": {"images": given.images},
        "evaluation": {"extractors": ["classifier", "pca64"]},
    }
    return parse(merge(recipe, run))


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
) -> Autoencoder:
    """Train as the loop does, on one rank; the average of the weights over time, which is what is registered.

    moves: the turns that are taken: without `autoencoder` it is a GAN, with nothing else a VAE. change: to the turns,
    for what the settings don't offer. prepared: what is done to the model first.
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
    for seen in range(0, settings.stop.images, batch):
        _, images, noise = loader.at(seen)
        engine(images, noise, weights_at(settings.objective, seen))
        average.update()
    averaged = average.module
    assert isinstance(averaged, Autoencoder)
    return averaged
