"""Figures and pictures of a run's models: the same in the gaps of training and beside it."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pipeline.data import manifest as manifests
from pipeline.data.batches import first_images
from pipeline.errors import Mistake
from pipeline.evaluation import pictures
from pipeline.evaluation.figures import Evaluator
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
        data, evaluation = settings.data, settings.evaluation
        self._seed = settings.seed
        self._ranks = ranks
        held_out = first_images(data.path, manifests.load(data.path), evaluation.split, evaluation.images)
        self._shown = held_out[:32]
        try:
            self._evaluator = Evaluator(held_out, evaluation.samples, settings.seed, ranks)
        except ValueError as error:
            raise Mistake(f"data.path {data.path!r}: {error}") from None

    def __call__(self, autoencoder: Autoencoder) -> Found:
        """All ranks together."""
        figures = self._evaluator.figures(autoencoder)
        drawn = self._pictures(autoencoder) if self._ranks.first else {}
        return Found(Evaluation(figures=figures, protocols={}), drawn)

    def checkpoint(self, path: Path) -> Found:
        """The averaged model of a checkpoint, all ranks together. Raises Mistake where the checkpoint is damaged."""
        autoencoder, _ = checkpoints.load_average(path)
        return self(autoencoder.to(self._ranks.device))

    def _pictures(self, autoencoder: Autoencoder) -> dict[str, Image.Image]:
        originals = self._shown.float() / 255
        return {
            "samples": pictures.grid(pictures.samples(autoencoder, 64, self._seed), 8),
            "reconstructions": pictures.grid(pictures.reconstructions(autoencoder, originals), 8),
        }
