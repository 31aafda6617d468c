"""The training loop of one rank: batches in, journal and checkpoints out. Knows nothing of Ray.

Every decision that ends or branches a run is made on figures agreed over the ranks, so all take it together.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.data import manifest as manifests
from pipeline.data.batches import Feed, Ids, Images, Order, first_images, shards_of
from pipeline.errors import Mistake
from pipeline.evaluation import pictures
from pipeline.evaluation.figures import Evaluator
from pipeline.ranks import Ranks
from pipeline.rundir import PICTURES, Journal
from pipeline.settings import BETTER, Settings
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Description
from pipeline.training.health import first_not_finite
from pipeline.training.state import Progress, TrainState
from vaegan import Autoencoder, build
from vaegan.average import moving_average
from vaegan.objective import players, turns, weights_at
from vaegan.step import Batch, Noise, step

Report = Callable[[dict[str, float]], None]
"""Tells the world of a checkpoint's figures; a barrier over ranks."""


class Ending(NamedTuple):
    """How a run ended."""

    kind: Literal["finished", "diverged", "failed", "mistake"]
    why: str


def train(settings: Settings, directory: Path, ranks: Ranks, report: Report) -> Ending:
    """Train, from the newest whole checkpoint of the run where there is one, until a stop rule holds.

    A Mistake that shows at the start, such as damaged data, ends the run on every rank; a later one is raised.
    """
    loop, trouble = None, ""
    try:
        loop = Loop(settings, directory, ranks, report)
    except Mistake as mistake:
        trouble = str(mistake)
    if ranks.any(loop is None) or loop is None:
        return Ending("mistake", trouble or "another rank could not start")
    return loop.run()


def noise_at(seed: int, position: int, batch: int, latent: int, share: slice) -> Noise:
    """A rank's share of the noise of a step: drawn for the global batch, so the number of ranks does not matter."""
    mixed = hashlib.sha256(f"noise/{seed}/{position}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big", signed=True))
    posterior_BZ, prior_BZ = torch.randn(2, batch, latent, generator=generator)[:, share]
    return Noise(posterior_BZ, prior_BZ)


class Loop:
    """One run on one rank."""

    def __init__(self, settings: Settings, directory: Path, ranks: Ranks, report: Report) -> None:
        self._settings = settings
        self._directory = directory
        self._ranks = ranks
        self._report = report
        self._journal = Journal(directory) if ranks.first else None
        manifest = manifests.load(settings.data.path)
        self._feed = _feed(settings, manifest, ranks)
        self._held_out = first_images(
            settings.data.path, manifest, settings.evaluation.split, settings.evaluation.images
        )
        self._evaluator = Evaluator(self._held_out, settings.evaluation.samples, settings.seed, ranks)
        self._description = Description(
            networks=settings.networks, likelihood=settings.objective.likelihood, shape=manifest.shape
        )
        self._turns = turns(settings.objective)
        self._state = _fresh_state(settings, self._description, ranks)
        self._logged: list[Tensor] = []
        self._names: list[str] = []
        self._interval_s = 0.0
        self._saved_at: float | None = None
        self._warned = False

    def run(self) -> Ending:
        """Until the end."""
        self._resume()
        progress, settings = self._state.progress, self._settings
        ending = self._finished()
        while ending is None:
            before = progress.images_seen
            self._step()
            last = progress.images_seen >= settings.stop.images
            save = last or _crossed(before, progress.images_seen, settings.checkpoints.every)
            if save or _crossed(before, progress.images_seen, settings.log_every):
                ending = self._log()
                if ending is None and (save or self._out_of_time()):
                    ending = self._checkpoint() or self._finished()
        return ending

    def _step(self) -> None:
        started = time.monotonic()
        progress, settings = self._state.progress, self._settings
        position, batch = progress.images_seen, settings.data.batch
        share = self._ranks.share(batch)
        ids, images = self._feed.at(position)
        noise = noise_at(settings.seed, position, batch, settings.networks.latent, share)
        device = self._ranks.device
        terms = step(
            self._turns,
            self._state.players,
            Batch(images.to(device).float() / 255),
            Noise(*(values.to(device) for values in noise)),
            weights_at(settings.objective, position),
            self._ranks.mean,
        )
        self._state.average.update_parameters(self._state.players["autoencoder"].network)
        self._names = list(terms)
        self._logged.append(torch.stack([term.mean() for term in terms.values()]))
        progress.images_seen += batch
        progress.order_digest = _chained(progress.order_digest, ids)
        self._interval_s += time.monotonic() - started

    def _log(self) -> Ending | None:
        """Average the terms since the last time over steps and ranks; end the run if one is not finite."""
        progress, settings = self._state.progress, self._settings
        means_ST = self._ranks.mean(torch.stack(self._logged).double()).cpu()
        bad = first_not_finite(self._names, means_ST)
        if bad is not None:
            return self._diverged(progress.images_seen - (len(means_ST) - bad[0] - 1) * settings.data.batch, bad[1])
        values = {f"train/{name}": float(mean) for name, mean in zip(self._names, means_ST.mean(0), strict=True)}
        weights = weights_at(settings.objective, progress.images_seen)
        values |= {"schedule/beta": float(weights["kl"]), "schedule/lambda": float(weights["adversarial"])}
        values["speed/images_per_s"] = len(means_ST) * settings.data.batch / self._interval_s
        progress.seconds += self._interval_s
        self._logged, self._interval_s = [], 0.0
        if self._journal is not None:
            self._journal.metrics(progress.images_seen, values)
        return None

    def _checkpoint(self) -> Ending | None:
        """Evaluate the averaged model, save, and tell the world."""
        progress, settings = self._state.progress, self._settings
        figures = self._evaluator.figures(_averaged(self._state))
        self._judge(figures[settings.checkpoints.metric])
        trouble = self._save(figures) if self._ranks.first else ""
        if self._ranks.any(bool(trouble)):
            return Ending("failed", trouble or "rank 0 could not save a checkpoint")
        self._report({**figures, "images_seen": float(progress.images_seen)})
        self._warn_if_hasty()
        return None

    def _warn_if_hasty(self) -> None:
        now, every = time.monotonic(), self._settings.checkpoints.every
        if self._journal is not None and self._saved_at is not None and now - self._saved_at < 2 and not self._warned:
            text = f"checkpoints.every is {every} images, less than 2 s: saving and evaluating take more than training"
            self._journal.note(self._state.progress.images_seen, "warning", text)
            self._warned = True
        self._saved_at = now

    def _judge(self, figure: float) -> None:
        """Keep count of evaluations without a better one."""
        progress = self._state.progress
        lower = BETTER[self._settings.checkpoints.metric] == "min"
        if progress.best is None or (figure < progress.best if lower else figure > progress.best):
            progress.best, progress.evaluations_since_best = figure, 0
        else:
            progress.evaluations_since_best += 1

    def _save(self, figures: dict[str, float]) -> str:
        """Checkpoint, pictures, journal; what went wrong with the disk, or nothing."""
        seen, rules = self._state.progress.images_seen, self._settings.checkpoints
        assert self._journal is not None
        try:
            checkpoints.write(self._directory, self._state, self._description, figures)
            checkpoints.prune(self._directory, rules.num_to_keep, rules.metric)
            self._journal.metrics(seen, figures)
            for key, picture in self._pictures().items():
                path = self._directory / PICTURES / f"{key}-{seen:09d}.png"
                self._journal.picture(seen, key, pictures.save(picture, path))
        except OSError as error:
            return f"could not save to {self._directory}: {error.strerror or error}; mend it and run the command again"
        return ""

    def _pictures(self) -> dict[str, Image.Image]:
        averaged = _averaged(self._state)
        originals = self._held_out[:32].float() / 255
        return {
            "samples": pictures.grid(pictures.samples(averaged, 64, self._settings.seed), 8),
            "reconstructions": pictures.grid(pictures.reconstructions(averaged, originals), 8),
        }

    def _resume(self) -> None:
        """Every rank looks for itself: nothing writes while a run starts."""
        path, troubles = checkpoints.newest_whole(self._directory)
        if path is not None:
            checkpoints.restore(path, self._state)
        if self._journal is None:
            return
        for trouble in troubles:
            self._journal.note(self._state.progress.images_seen, "warning", trouble)
        start = f"from {path.name}" if path is not None else "from the start"
        self._journal.note(self._state.progress.images_seen, "note", f"{self._ranks.world} workers, {start}")
        self._journal.note(self._state.progress.images_seen, "status", "RUNNING")

    def _finished(self) -> Ending | None:
        progress, stop = self._state.progress, self._settings.stop
        if progress.images_seen >= stop.images:
            return Ending("finished", f"{progress.images_seen} images seen")
        if stop.patience is not None and progress.evaluations_since_best >= stop.patience:
            return Ending(
                "finished", f"{stop.patience} evaluations without a better {self._settings.checkpoints.metric}"
            )
        if self._out_of_time():
            return Ending("finished", f"{stop.minutes:g} minutes of training")
        return None

    def _out_of_time(self) -> bool:
        minutes = self._settings.stop.minutes
        return minutes is not None and self._ranks.any(self._state.progress.seconds > 60 * minutes)

    def _diverged(self, images_seen: int, term: str) -> Ending:
        last, _ = checkpoints.newest_whole(self._directory)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"
        return Ending("diverged", f"train/{term} is not finite in the step that ends at {images_seen} images; {where}")


def _feed(settings: Settings, manifest: manifests.Manifest, ranks: Ranks) -> Feed:
    data = settings.data
    images = Images(data.path, manifest, "train", data.window, data.budget_mb)
    order = Order([shard.rows for shard in shards_of(manifest, "train")], settings.seed, data.window)
    return Feed(order, images, data.batch, ranks.share(data.batch))


def _fresh_state(settings: Settings, description: Description, ranks: Ranks) -> TrainState:
    """A run's state before its first image: the same weights on every rank, from the seed."""
    torch.manual_seed(settings.seed)
    model = build(description.networks, description.likelihood, description.shape).to(ranks.device)
    everyone = players(model, settings.objective, settings.optimizers, ranks.wrap)
    average = moving_average(everyone["autoencoder"].network, settings.average_half_life, settings.data.batch)
    return TrainState(model, average, everyone, Progress())


def _averaged(state: TrainState) -> Autoencoder:
    network = state.average.module
    assert isinstance(network, Autoencoder)
    return network


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def _chained(digest: str, ids: Ids) -> str:
    return hashlib.sha256(digest.encode() + ids.tobytes()).hexdigest()
