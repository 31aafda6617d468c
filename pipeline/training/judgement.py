"""What is thought of each checkpoint: evaluated beside training where a CPU is spare, in the gap where none is.

Figures are told as soon as they are known, and decided on when the next checkpoint is to be saved: so no decision
depends on how long an evaluation took, or where it was made.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from threading import Event
from typing import Protocol

from pipeline.errors import Failure
from pipeline.evaluation import pictures
from pipeline.evaluation.measure import Found, Measure
from pipeline.ranks import Ranks
from pipeline.rundir import PICTURES, Journal
from pipeline.settings import Settings, better
from pipeline.training import checkpoints, health
from pipeline.training.background import Background
from pipeline.training.ending import Ending, diverged, unwritten
from pipeline.training.state import TrainState
from vaegan import Autoencoder

Report = Callable[[dict[str, float]], None]
"""Tells the world of a checkpoint's figures; a barrier over ranks."""

Save = Callable[[], object]
"""Writes a checkpoint."""

PATIENCE_S = 300.0
"""How long training waits for an evaluation beside it: less than the ranks wait for each other."""


class Aside(Protocol):
    """Where checkpoints can be evaluated beside training. Only the first rank asks."""

    def room(self) -> bool:
        """Whether a CPU is spare at this moment."""

    def measure(self, path: Path, given_up: Event) -> Found:
        """Evaluate a checkpoint, and wait for it. Raises Failure where that is lost or given up."""


class Judgement:
    """Of one run, on one rank. One checkpoint at a time is pending: begun and not settled."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        ranks: Ranks,
        report: Report,
        journal: Journal | None,
        state: TrainState,
        measure: Measure,
        aside: Aside | None,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._ranks = ranks
        self._report = report
        self._journal = journal
        self._state = state
        self._measure = measure
        self._aside = aside
        self._background = Background()
        self._pending: Path | None = None
        self._told = False
        self._given_up = Event()
        self._signs: tuple[str, ...] = ()
        self._told_where = False
        self._begun_at: float | None = None
        self._warned = False

    def begin(self, save: Save | None, *, last: bool) -> None:
        """Save the run as it is now, and evaluate it.

        save: on the first rank, unless it is saved already. last: training is over, and leaves its CPUs to it.
        """
        self._pending = path = checkpoints.folder_of(self._directory, self._state.progress.images_seen)
        self._told, self._given_up = False, Event()
        self._signs, self._state.progress.flags = health.carried(self._state.progress), []
        self._warn_if_hasty()
        beside = not last and self._there_is_room()
        found = None if beside else self._measure(averaged(self._state))
        if self._ranks.first:
            self._background.start(partial(self._save_and_keep, save, path, found))

    def resume(self, path: Path, *, last: bool) -> None:
        """Take up a checkpoint that the run goes on from: a kill may have come before it was evaluated, or told."""
        self._pending = path
        if self._agreed_figures(path) is None:
            self.begin(None, last=last)
        self._state.progress.flags = []

    def tell(self) -> None:
        """Report the pending checkpoint if its figures are known by now."""
        if self._pending is None or self._told or self._ranks.any(self._background.busy):
            return
        figures = self._agreed_figures(self._pending)
        if figures is not None and _first_not_finite(figures) is None:
            self._report_once(self._pending, figures)

    def settle(self) -> Ending | None:
        """Wait for the pending checkpoint's figures, and decide on them."""
        failed = unwritten(self._directory, self._ranks, self._wait)
        path, self._pending = self._pending, None
        if failed is not None or path is None:
            return failed
        figures = self._agreed_figures(path)
        if figures is None:
            found = self._measure.checkpoint(path)
            failed = unwritten(self._directory, self._ranks, partial(self._keep, path, found))
            figures = self._agreed_figures(path)
        return failed if failed is not None or figures is None else self._judge(path, figures)

    def _there_is_room(self) -> bool:
        room = self._ranks.any(self._ranks.first and self._aside is not None and self._aside.room())
        if self._journal is not None and self._aside is not None and not self._told_where:
            where = "beside training" if room else "in the gaps: no CPU is spare"
            self._journal.note(self._state.progress.images_seen, "note", f"evaluations run {where}")
            self._told_where = True
        return room

    def _save_and_keep(self, save: Save | None, path: Path, found: Found | None) -> None:
        if save is not None:
            save()
        found = found or self._found_aside(path)
        if found is not None:
            self._keep(path, found)

    def _found_aside(self, path: Path) -> Found | None:
        assert self._aside is not None and self._journal is not None
        try:
            return self._aside.measure(path, self._given_up)
        except Failure as failure:
            self._aside = None
            text = f"{path.name} could not be evaluated beside training: {failure}; this and later ones are in the gaps"
            self._journal.note(checkpoints.images_of(path), "warning", text)
            return None

    def _keep(self, path: Path, found: Found) -> None:
        """Journal, pictures, evaluation; the evaluation last, so that a kill in between repeats all three."""
        assert self._journal is not None
        images_seen, rules, figures = checkpoints.images_of(path), self._settings.checkpoints, found.evaluation.figures
        if _first_not_finite(figures) is not None:  # the run ends of it
            checkpoints.write_evaluation(path, found.evaluation)
            return
        readings = self._readings(figures)
        since = health.bad_since(readings, images_seen, self._state.progress.bad_since, self._settings.health)
        signs = tuple(sorted({*self._signs, *health.showing(since, images_seen, self._settings.health)}))
        self._journal.metrics(images_seen, {**figures, **health.points(readings)})
        for key, picture in found.pictures.items():
            file = self._directory / PICTURES / f"{key}-{images_seen:09d}.png"
            self._journal.picture(images_seen, key, pictures.save(picture, file))
        checkpoints.write_evaluation(path, replace(found.evaluation, health=signs))
        checkpoints.prune(self._directory, rules.num_to_keep, rules.metric, self._behind)

    @property
    def _behind(self) -> int | None:
        """Images that trouble may have been coming on for when a run is set back: it showed, it rested, it showed."""
        rules = self._settings.health
        return 2 * (rules.patience + self._settings.log_every) + rules.hold if rules.mode == "act" else None

    def _wait(self) -> None:
        if not self._background.done_within(PATIENCE_S):
            self._given_up.set()
        self._background.settle()

    def _agreed_figures(self, path: Path) -> dict[str, float] | None:
        """Of a checkpoint's evaluation on disk, as the first rank sees it; None where there is none."""
        evaluation = checkpoints.evaluation_of(path) if self._ranks.first else None
        figures: dict[str, float] | None = json.loads(
            self._ranks.first_tells(json.dumps(evaluation and evaluation.figures))
        )
        return figures

    def _judge(self, path: Path, figures: dict[str, float]) -> Ending | None:
        images_seen, bad = checkpoints.images_of(path), _first_not_finite(figures)
        if bad is not None:
            failed = unwritten(self._directory, self._ranks, partial(checkpoints.set_aside, path))
            return failed or diverged(self._directory, self._ranks, images_seen, bad)
        self._report_once(path, figures)
        self._count(figures[self._settings.checkpoints.metric])
        return self._look(images_seen, self._readings(figures))

    def _readings(self, figures: Mapping[str, float]) -> dict[str, float]:
        return health.evaluated(figures, self._settings.networks.latent)

    def _look(self, images_seen: int, readings: Mapping[str, float]) -> Ending | None:
        """At signs that evaluations show: there is nothing to be done about them but to tell, or to end the run."""
        for sign, text in health.look(readings, images_seen, self._state.progress, self._settings.health):
            if health.treatment(sign, self._state.progress, self._settings.health) == "end":
                return Ending("diverged", text)
            if self._journal is not None:
                self._journal.note(images_seen, "warning", text)
        return None

    def _report_once(self, path: Path, figures: dict[str, float]) -> None:
        if not self._told:
            self._report({**figures, "images_seen": float(checkpoints.images_of(path))})
            self._told = True

    def _count(self, figure: float) -> None:
        """Evaluations without a better one."""
        progress = self._state.progress
        lower = better(self._settings.checkpoints.metric) == "min"
        if progress.best is None or (figure < progress.best if lower else figure > progress.best):
            progress.best, progress.evaluations_since_best = figure, 0
        else:
            progress.evaluations_since_best += 1

    def _warn_if_hasty(self) -> None:
        now, every = time.monotonic(), self._settings.checkpoints.every
        hasty = self._begun_at is not None and now - self._begun_at < 2
        if self._journal is not None and hasty and not self._warned:
            text = f"checkpoints.every is {every} images, less than 2 s: saving and evaluating take more than training"
            self._journal.note(self._state.progress.images_seen, "warning", text)
            self._warned = True
        self._begun_at = now


def averaged(state: TrainState) -> Autoencoder:
    """The model whose figures count."""
    network = state.average.module
    assert isinstance(network, Autoencoder)
    return network


def _first_not_finite(figures: Mapping[str, float]) -> str | None:
    return next((name for name, figure in figures.items() if not isfinite(figure)), None)
