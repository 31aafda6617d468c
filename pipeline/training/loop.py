"""The training loop of one rank: batches in, journal and checkpoints out. Knows nothing of Ray.

Every decision that ends or branches a run is made on figures agreed over the ranks, so all take it together.
"""

import time
from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pipeline.data import manifest as manifests
from pipeline.data.batches import Feed, first_images
from pipeline.data.loader import feed_of
from pipeline.errors import Mistake
from pipeline.evaluation import pictures
from pipeline.evaluation.figures import Evaluator
from pipeline.ranks import Ranks
from pipeline.rundir import PICTURES, Journal
from pipeline.settings import Settings, better
from pipeline.speed.ceiling import measure
from pipeline.speed.figures import Stretch
from pipeline.speed.flops import flop_per_image
from pipeline.speed.meter import Account, Meter
from pipeline.training import checkpoints
from pipeline.training.background import Background
from pipeline.training.checkpoints import Description
from pipeline.training.choice import chosen
from pipeline.training.health import first_not_finite, not_finite
from pipeline.training.start import Start
from pipeline.training.state import Snapshot, TrainState
from pipeline.training.stepper import Stepper
from vaegan import Autoencoder
from vaegan.execution import prepare
from vaegan.networks.ports import Shape
from vaegan.objective import weights_at

Report = Callable[[dict[str, float]], None]
"""Tells the world of a checkpoint's figures; a barrier over ranks."""


class Ending(NamedTuple):
    """How a run ended."""

    kind: Literal["finished", "diverged", "failed", "mistake"]
    why: str


def train(settings: Settings, directory: Path, ranks: Ranks, report: Report, start: Start | None = None) -> Ending:
    """Train, from the newest whole checkpoint of the run where there is one, until a stop rule holds.

    A Mistake that shows at the start, such as damaged data, ends the run on every rank; a later one is raised.
    """
    prepare(ranks.device)
    material, trouble = None, ""
    try:
        material = _material(settings, ranks)
    except Mistake as mistake:
        trouble = str(mistake)
    if ranks.any(material is None) or material is None:  # before DDP is built: that is a collective too
        return Ending("mistake", trouble or "another worker could not read the data; its log says why")
    start = start or Start(time.time())
    start.lap("data")
    return Loop(settings, directory, ranks, report, material, start).run()


class Material(NamedTuple):
    """What a rank reads before it starts."""

    feed: Feed
    held_out: Tensor
    """(N, C, H, W) uint8."""
    evaluator: Evaluator
    shape: Shape


class Loop:
    """One run on one rank."""

    def __init__(
        self, settings: Settings, directory: Path, ranks: Ranks, report: Report, material: "Material", start: Start
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._ranks = ranks
        self._report = report
        self._journal = Journal(directory) if ranks.first else None
        feed, self._held_out, self._evaluator, shape = material
        self._description = Description(
            networks=settings.networks, likelihood=settings.objective.likelihood, shape=shape
        )
        ceilings = measure(ranks.device) if ranks.first else None
        execution = chosen(settings, directory, shape, ranks, ceilings, self._note_at_start)
        self._stepper = Stepper(settings, feed, shape, execution, ranks)
        self._state = self._stepper.state
        self._meter = Meter(ranks.device, self._stepper.communication)
        self._account: Account | None = None
        if ceilings is not None:
            flop = flop_per_image(settings.networks, settings.objective, shape)
            self._account = Account(ceilings, execution.dtype, ranks.world, flop)
        self._logged: list[Tensor] = []
        self._writer = Background()
        self._unreported: dict[str, float] | None = None
        self._saved_at: float | None = None
        self._warned = False
        self._start = start

    def _note_at_start(self, text: str) -> None:
        if self._journal is not None:
            self._journal.note(0, "note", text)

    def run(self) -> Ending:
        """Until the end."""
        self._resume()
        progress, settings = self._state.progress, self._settings
        ending = self._finished()
        self._meter.begin()
        while ending is None:
            before = progress.images_seen
            self._logged.append(self._stepper.step(self._meter.phases))
            self._start.lap("first_step")
            last = progress.images_seen >= settings.stop.images
            save = last or _crossed(before, progress.images_seen, settings.checkpoints.every)
            if save or _crossed(before, progress.images_seen, settings.log_every):
                ending = self._log()
                if ending is None and (save or self._out_of_time()):
                    ending = self._checkpoint() or self._finished()
                self._meter.begin()
        return self._settled() or ending

    def _log(self) -> Ending | None:
        """Average the terms since the last time over steps and ranks; end the run if one is not finite."""
        progress, settings, names = self._state.progress, self._settings, self._stepper.names
        with self._meter.phases("wait"):
            means_ST = self._ranks.mean(torch.stack(self._logged).double()).cpu()
        stretch = self._meter.read(len(means_ST), len(means_ST) * settings.data.batch)
        bad = first_not_finite(names, means_ST)
        if bad is not None:
            after = (len(means_ST) - bad[0] - 1) * settings.data.batch
            return self._diverged(progress.images_seen - after, f"train/{bad[1]}")
        values = {f"train/{name}": float(mean) for name, mean in zip(names, means_ST.mean(0), strict=True)}
        weights = weights_at(settings.objective, progress.images_seen)
        values |= {"schedule/beta": float(weights["kl"]), "schedule/lambda": float(weights["adversarial"])}
        progress.seconds += stretch.seconds
        self._logged = []
        failed = self._failed(partial(self._write_point, values | self._start.points(), stretch))
        if failed is None and self._unreported is not None and not self._ranks.any(self._writer.busy):
            failed = self._settled()
        return failed

    def _write_point(self, values: dict[str, float], stretch: Stretch) -> None:
        assert self._journal is not None and self._account is not None
        self._journal.metrics(self._state.progress.images_seen, values | self._account.figures(stretch))

    def _checkpoint(self) -> Ending | None:
        """Evaluate the averaged model, and start to save."""
        failed = self._settled()
        if failed is not None:
            return failed
        progress, settings = self._state.progress, self._settings
        ruined = not_finite({"model": self._state.model, "average": self._state.average.module})
        if self._ranks.any(bool(ruined)):  # the last update; its loss would show it one step later
            return self._diverged(progress.images_seen, f"a weight of the {ruined or 'model'}")
        figures = self._evaluator.figures(_averaged(self._state))
        for name, figure in figures.items():
            if not isfinite(figure):
                return self._diverged(progress.images_seen, name)
        self._judge(figures[settings.checkpoints.metric])
        self._unreported = {**figures, "images_seen": float(progress.images_seen)}
        if self._ranks.first:
            self._writer.start(partial(self._save, self._state.snapshot(), self._pictures(), figures))
        return None

    def _settled(self) -> Ending | None:
        """Wait for what is being written; once it is on disk, tell the world."""
        failed = self._failed(self._writer.settle)
        told, self._unreported = self._unreported, None
        if failed is None and told is not None:
            self._report(told)
            self._warn_if_hasty()
        return failed

    def _failed(self, write: Callable[[], None]) -> Ending | None:
        """Let rank 0 write; where its disk refuses, every rank ends."""
        trouble = ""
        if self._ranks.first:
            try:
                write()
            except OSError as error:
                trouble = f"could not write to {self._directory}: {error.strerror or error}"
        if self._ranks.any(bool(trouble)):
            return Ending("failed", f"{trouble or 'rank 0 could not write'}; mend it and run the same command again")
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
        lower = better(self._settings.checkpoints.metric) == "min"
        if progress.best is None or (figure < progress.best if lower else figure > progress.best):
            progress.best, progress.evaluations_since_best = figure, 0
        else:
            progress.evaluations_since_best += 1

    def _save(self, state: Snapshot, drawn: dict[str, Image.Image], figures: dict[str, float]) -> None:
        """Journal, pictures, checkpoint; the checkpoint last, so that a kill in between repeats all three."""
        rules = self._settings.checkpoints
        assert self._journal is not None
        self._journal.metrics(state.images_seen, figures)
        for key, picture in drawn.items():
            path = self._directory / PICTURES / f"{key}-{state.images_seen:09d}.png"
            self._journal.picture(state.images_seen, key, pictures.save(picture, path))
        checkpoints.write(self._directory, state, self._description, figures)
        checkpoints.prune(self._directory, rules.num_to_keep, rules.metric)

    def _pictures(self) -> dict[str, Image.Image]:
        averaged = _averaged(self._state)
        originals = self._held_out[:32].float() / 255
        return {
            "samples": pictures.grid(pictures.samples(averaged, 64, self._settings.seed), 8),
            "reconstructions": pictures.grid(pictures.reconstructions(averaged, originals), 8),
        }

    def _resume(self) -> None:
        """From the checkpoint that rank 0 chooses: ranks that looked for themselves might not see the same."""
        path, troubles = self._chosen()
        if path is not None:
            checkpoints.restore(path, self._state)
            figures, images_seen = checkpoints.figures_of(path), self._state.progress.images_seen
            self._unreported = {**figures, "images_seen": float(images_seen)}  # it may have been saved and not told
        if self._journal is None:
            return
        for trouble in troubles:
            self._journal.note(self._state.progress.images_seen, "warning", trouble)
        start = f"from {path.name}" if path is not None else "from the start"
        self._journal.note(self._state.progress.images_seen, "note", f"{self._ranks.world} workers, {start}")
        self._journal.note(self._state.progress.images_seen, "status", "RUNNING")

    def _chosen(self) -> tuple[Path | None, list[str]]:
        newest: Path | None = None
        troubles: list[str] = []
        if self._ranks.first:
            newest, troubles = checkpoints.newest_whole(self._directory)
            checkpoints.set_aside(self._directory, newest)
        images = self._ranks.first_says(-1 if newest is None else checkpoints.images_of(newest))
        if images < 0:
            return None, troubles
        path = checkpoints.folder_of(self._directory, images)
        checkpoints.verify(path)
        return path, troubles

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

    def _diverged(self, images_seen: int, what: str) -> Ending:
        failed = self._settled()
        if failed is not None:
            return failed
        last, _ = checkpoints.newest_whole(self._directory)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"
        return Ending("diverged", f"{what} is not finite in the step that ends at {images_seen} images; {where}")


def _material(settings: Settings, ranks: Ranks) -> Material:
    """Read the data. No collectives: a rank that fails here must not leave others waiting. Raises Mistake."""
    data, evaluation = settings.data, settings.evaluation
    manifest = manifests.load(data.path)
    held_out = first_images(data.path, manifest, evaluation.split, evaluation.images)
    try:
        evaluator = Evaluator(held_out, evaluation.samples, settings.seed, ranks)
    except ValueError as error:
        raise Mistake(f"data.path {data.path!r}: {error}") from None
    return Material(feed_of(settings, manifest, ranks), held_out, evaluator, manifest.shape)


def _averaged(state: TrainState) -> Autoencoder:
    network = state.average.module
    assert isinstance(network, Autoencoder)
    return network


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
