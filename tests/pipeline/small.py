"""Small runs that the tests share: a tiny VAE-GAN on the digits, trained in this process without Ray."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.data import manifest as manifests
from pipeline.evaluation.protocol import Evaluation, Protocol, Value
from pipeline.ranks import Ranks
from pipeline.rundir import Event, Record, new_record, open_record, read_journal
from pipeline.settings import Settings, Tree, dump, identity, merge, parse
from pipeline.training.checkpoints import Description
from pipeline.training.ending import Ending
from pipeline.training.judgement import Aside
from pipeline.training.loop import train
from pipeline.training.state import Progress, TrainState
from vaegan import build, config
from vaegan.average import moving_average
from vaegan.objective import players, turns, weights_at
from vaegan.step import Batch, Noise, step

TINY: Tree = {
    "name": "tiny",
    "log_every": 64,
    "average_half_life": 500,
    "data": {"batch": 32},
    "compute": {"precision": "fp32"},
    "networks": {"family": "mlp", "width": 16, "latent": 4, "norm": "none"},
    "objective": {"schedule": "joint", "likelihood": {"kind": "bernoulli"}},
    "optimizers": {"autoencoder": {"lr": 1e-3}, "discriminator": {"lr": 1e-3}},
    "stop": {"images": 256},
    "checkpoints": {"every": 128, "num_to_keep": 10},
    "evaluation": {"images": 64, "samples": 64},
}
"""Settings but for where things are."""


class Run(NamedTuple):
    """What a call of the training loop came to."""

    ending: Ending
    directory: Path
    reports: list[dict[str, float]]

    @property
    def kept(self) -> list[int]:
        """Images seen of its checkpoints."""
        return sorted(int(path.name.removeprefix("images-")) for path in self.directory.glob("images-*"))

    @property
    def events(self) -> list[Event]:
        return events(self.directory)


def changed(tree: Tree, changes: Mapping[str, object]) -> Tree:
    """A tree with these values at their dotted paths."""
    for path, value in changes.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        assert isinstance(value, dict)
        tree = merge(tree, value)
    return tree


def tiny(data: str, home: Path, changes: Mapping[str, object] | None = None) -> Settings:
    return parse(changed(TINY, {"data.path": data, "home": str(home), **(changes or {})}))


def run(settings: Settings, aside: Aside | None = None) -> Run:
    """Train in this process, or go on."""
    directory = Path(settings.home) / settings.name
    directory.mkdir(parents=True, exist_ok=True)
    reports: list[dict[str, float]] = []
    return Run(train(settings, directory, Ranks(), reports.append, aside=aside), directory, reports)


def record(settings: Settings, uri: str = "", parent: str | None = None, kind: str = "run") -> Record:
    """Open a run's record in its folder as the driver does."""
    manifest = manifests.load(settings.data.path)
    data = {"path": settings.data.path, "digest": manifest.digest, "source": manifest.source}
    made = new_record(
        dump(settings), identity(settings, manifest.digest), data, uri, {"vaegan.command": "vaegan train"}, parent
    )
    made["kind"] = "search" if kind == "search" else "run"
    return open_record(Path(settings.home) / settings.name, made)


def events(directory: Path) -> list[Event]:
    return [event for event, _ in read_journal(directory, 0)]


def points(directory: Path) -> list[tuple[str, int]]:
    """(key, step) of every point of a journal."""
    return [(key, event.step) for event in events(directory) if event.kind == "metrics" for key in event.body]


FD, PSNR = "eval/fd_pca64/samples", "eval/psnr/reconstructions"
PROTOCOL: Protocol = {"extractor": "pca64", "data": "d" * 64, "split": "test", "images": 10_000, "seed": 0}


def evaluation(fd: float, psnr: float = 20.0, noise: float = 0.0, **protocol: Value) -> Evaluation:
    """One that found these two figures."""
    how = {**PROTOCOL, "noise": noise, **protocol}
    return Evaluation(figures={FD: fd, PSNR: psnr}, protocols={FD: {"samples": 10_000, **how}, PSNR: how})


def state_of(path: Path) -> dict[str, dict[str, object]]:
    """`state.json` of a checkpoint."""
    return json.loads((path / "state.json").read_text())


def weights_of(path: Path) -> dict[str, bytes]:
    """Name -> bytes of a checkpoint's tensor files."""
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


SHAPE = (1, 4, 4)


class Game(NamedTuple):
    """A state that can be trained apart from data and loop."""

    state: TrainState
    description: Description
    objective: config.Objective

    def play(self, steps: int) -> None:
        """Steps whose batch and noise follow from the images seen."""
        progress = self.state.progress
        for _ in range(steps):
            drawn = torch.Generator().manual_seed(progress.images_seen)
            batch = Batch(torch.rand(6, *SHAPE, generator=drawn))
            noise = Noise(*torch.randn(2, 6, 3, generator=drawn))
            weights = weights_at(self.objective, progress.images_seen)
            step(turns(self.objective), self.state.players, batch, noise, weights)
            self.state.average.update()
            progress.images_seen += 6


def game(seed: int = 0, schedule: str = "joint", kind: str = "adam") -> Game:
    torch.manual_seed(seed)
    networks = config.Networks(family="mlp", latent=3, width=5, norm="none")
    objective = config.Objective(schedule="plain" if schedule == "plain" else "joint", lambda_=0.3)
    one = config.Optimizer(kind="rmsprop" if kind == "rmsprop" else "adam", lr=1e-2)
    optimizers = config.Optimizers(autoencoder=one, discriminator=one, generator=one)
    model = build(networks, objective.likelihood, SHAPE)
    everyone = players(model, objective, optimizers)
    average = moving_average(everyone["autoencoder"].network, 50, 6)
    state = TrainState(model, average, everyone, Progress())
    return Game(state, Description(networks=networks, likelihood=objective.likelihood, shape=SHAPE), objective)
