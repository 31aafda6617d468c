"""Figures and pictures of a run's models: the same in the gaps of training and beside it."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.data import manifest as manifests
from pipeline.evaluation.figures import open_evaluator
from pipeline.evaluation.pictures import pictures_of
from pipeline.evaluation.protocol import Evaluation
from pipeline.ranks import Ranks
from pipeline.settings import Settings
from pipeline.training import checkpoints
from vaegan import Autoencoder


class Found(NamedTuple):
    """What is found of a model."""

    evaluation: Evaluation
    """The same on every rank."""
    pictures: dict[str, Image.Image]
    """By name; on the first rank only."""


class Measure:
    """Measures the models of a run by its settings."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        """Read the held-out images. No collectives: a rank that fails here leaves none waiting. Raises Mistake."""
        data = settings.data.path
        self._seed = settings.seed
        self._ranks = ranks
        self._metric = settings.checkpoints.metric
        self._evaluator = open_evaluator(data, manifests.load(data), settings.evaluation, ranks)
        self._evaluator.require(self._metric)

    def agree(self) -> None:
        """Measure what all ranks can, all ranks together. Raises Mistake on each where the metric is not among it."""
        self._evaluator.agree()
        self._evaluator.require(self._metric)

    def __call__(self, autoencoder: Autoencoder) -> Found:
        """All ranks together."""
        evaluation = self._evaluator.evaluate(autoencoder, self._evaluator.prior(autoencoder.decoder.latent_size))
        shown = self._evaluator.held_out
        drawn = pictures_of(autoencoder, shown.images, shown.training, self._seed) if self._ranks.first else {}
        return Found(evaluation, drawn)

    def checkpoint(self, path: Path) -> Found:
        """The averaged model of a checkpoint, all ranks together. Raises Mistake where the checkpoint is damaged."""
        autoencoder, _ = checkpoints.load_average(path)
        return self(autoencoder.to(self._ranks.device))
