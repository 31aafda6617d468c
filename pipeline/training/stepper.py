"""What one rank needs to take steps: a state, an engine that moves it, a loader that feeds it. T terms.

The training loop and `vaegan profile` take the same steps.
"""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.batches import Ids
from pipeline.data.loader import Chance, Loader, Stream
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from pipeline.speed.communication import Communication
from pipeline.training import checkpoints
from pipeline.training.health import treated
from pipeline.training.state import Progress, Tensors, TrainState
from vaegan import VAEGAN, build
from vaegan.average import moving_average
from vaegan.execution import Execution, assemble
from vaegan.networks.ports import Shape
from vaegan.objective import weights_at
from vaegan.step import Watch


class Stepper:
    """Steps of a run. Its state before the first image is the same on every rank: it follows from the seed."""

    def __init__(self, settings: Settings, feed: Stream, shape: Shape, execution: Execution, ranks: Ranks) -> None:
        """Raises ValueError where the networks can't take images of that shape."""
        compute, data = settings.compute, settings.data
        self.communication = Communication(ranks.device, compressed=compute.gradients == "bf16")
        self._fresh = partial(_fresh, settings, shape, ranks.device)
        model = self._fresh()
        self._engine = assemble(
            model,
            settings.objective,
            settings.optimizers,
            execution,
            wrap=lambda learner: self.communication.watched(ranks.wrap(learner)),
            agree=ranks.mean,
            parts=compute.accumulate,
            recompute=compute.recompute,
        )
        players = self._engine.players
        average = moving_average(players["autoencoder"].network, settings.average_half_life, data.batch)
        self.state = TrainState(model, average, players, Progress())
        self._settings = settings
        share, slopes = ranks.share(data.batch), shape if settings.objective.penalty else None
        chance = Chance(settings.seed, data.batch, settings.networks.latent, share, flip=data.flip, slopes=slopes)
        self._loader = Loader(feed, chance, ranks.device)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the terms, `turn/term`, once a step has been taken."""
        return self._engine.names

    def step(self, watch: Watch) -> Tensor:
        """The next global batch, this rank's share of it. Returns the mean of each term, (T,), on the device."""
        progress, settings = self.state.progress, self._settings
        with watch("data"):
            ids, batch, noise = self._loader.at(progress.images_seen)
        weights = weights_at(settings.objective, progress.images_seen)
        means = self._engine(batch, noise, treated(weights, progress, self.state.players), watch)
        with watch("update"):
            self.state.average.update()
        progress.images_seen += settings.data.batch
        progress.order_digest = _chained(progress.order_digest, ids)
        if progress.images_seen < settings.stop.images:
            with watch("data"):
                self._loader.prepare(progress.images_seen)
        return means

    def set_back(self, path: Path | None) -> None:
        """Go on with the weights of a checkpoint, or else with those before the first image."""
        if path is None:
            model = self._fresh()
            untouched: dict[str, Tensors] = {f"optimizer-{name}": {} for name in self.state.players}
            weights = {"model": model.state_dict(), "average": model.autoencoder.state_dict()}
            self.state.set_back(weights | untouched, {"averaged": 0})
        else:
            checkpoints.set_back(path, self.state)
        self._engine.forget()


def _fresh(settings: Settings, shape: Shape, device: torch.device) -> VAEGAN:
    torch.manual_seed(settings.seed)
    return build(settings.networks, settings.objective.likelihood, shape).to(device)


def _chained(digest: str, ids: Ids) -> str:
    return hashlib.sha256(digest.encode() + ids.tobytes()).hexdigest()
