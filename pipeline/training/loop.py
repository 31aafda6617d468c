"""The training loop of one rank: batches in, journal and checkpoints out. Knows nothing of Ray.

Every decision that ends or branches a run is made on figures agreed over the ranks, so all take it together.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data import manifest as manifests
from pipeline.data.batches import Feed
from pipeline.data.loader import feed_of
from pipeline.errors import Mistake
from pipeline.evaluation.measure import Measure
from pipeline.ranks import Ranks
from pipeline.rundir import Journal
from pipeline.settings import Settings
from pipeline.speed import ceiling
from pipeline.speed.figures import Stretch
from pipeline.speed.flops import flop_per_image
from pipeline.speed.meter import Account, Meter
from pipeline.training import checkpoints, health
from pipeline.training.checkpoints import Description
from pipeline.training.choice import chosen
from pipeline.training.ending import Ending, diverged, unwritten
from pipeline.training.health import Finding
from pipeline.training.judgement import Aside, Judgement, Report, Save
from pipeline.training.start import Start
from pipeline.training.stepper import Stepper
from vaegan.execution import prepare
from vaegan.networks.ports import Shape
from vaegan.objective import weights_at


def train(
    settings: Settings,
    directory: Path,
    ranks: Ranks,
    report: Report,
    start: Start | None = None,
    aside: Aside | None = None,
) -> Ending:
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
    try:
        material.measure.agree()
    except Mistake as mistake:
        return Ending("mistake", str(mistake))
    start = start or Start(time.time())
    start.lap("data")
    return Loop(settings, directory, ranks, report, material, start, aside).run()


class Material(NamedTuple):
    """What a rank reads before it starts."""

    feed: Feed
    measure: Measure
    shape: Shape


class Loop:
    """One run on one rank."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        ranks: Ranks,
        report: Report,
        material: Material,
        start: Start,
        aside: Aside | None,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._ranks = ranks
        self._journal = Journal(directory) if ranks.first else None
        feed, measure, shape = material
        self._description = Description(
            networks=settings.networks, likelihood=settings.objective.likelihood, shape=shape
        )
        ceilings = ceiling.measure(ranks.device) if ranks.first else None
        execution = chosen(settings, directory, shape, ranks, ceilings, self._note_at_start)
        self._stepper = Stepper(settings, feed, shape, execution, ranks)
        self._state = self._stepper.state
        self._judgement = Judgement(settings, directory, ranks, report, self._journal, self._state, measure, aside)
        self._meter = Meter(ranks.device, self._stepper.communication)
        self._account: Account | None = None
        if ceilings is not None:
            flop = flop_per_image(settings.networks, settings.objective, shape)
            self._account = Account(ceilings, execution.dtype, ranks.world, flop)
        self._logged: list[Tensor] = []
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
        return self._judgement.settle() or ending

    def _log(self) -> Ending | None:
        """Average the terms since the last time over steps and ranks; end the run if one is not finite."""
        progress, settings, names = self._state.progress, self._settings, self._stepper.names
        with self._meter.phases("wait"):
            means_ST = self._ranks.mean(torch.stack(self._logged).double()).cpu()
        stretch = self._meter.read(len(means_ST), len(means_ST) * settings.data.batch)
        progress.seconds += stretch.seconds
        self._logged = []
        bad = health.first_not_finite(names, means_ST)
        if bad is not None:
            after = (len(means_ST) - bad[0] - 1) * settings.data.batch
            return self._diverged(progress.images_seen - after, f"train/{bad[1]}")
        terms = dict(zip(names, means_ST.mean(0).tolist(), strict=True))
        weights = weights_at(settings.objective, progress.images_seen)
        beta, lambda_ = float(weights["kl"]), float(weights["adversarial"])
        readings = health.readings(terms, settings.networks.latent, lambda_)
        values = {f"train/{name}": mean for name, mean in terms.items()} | health.points(readings)
        values |= {"schedule/beta": beta, "schedule/lambda": lambda_}
        write = partial(self._write_point, values | self._start.points(), stretch)
        failed = unwritten(self._directory, self._ranks, write)
        if failed is not None:
            return failed
        self._judgement.tell()
        return self._see_to(health.look(readings, progress.images_seen, progress, settings.health))

    def _see_to(self, findings: Sequence[Finding]) -> Ending | None:
        """Do what the settings say about signs that show."""
        progress, rules = self._state.progress, self._settings.health
        for sign, text in findings:
            treatment = health.treatment(sign, progress, rules)
            match treatment:
                case "end":
                    return Ending("diverged", text)
                case "hold":
                    text = f"{text}. Done: {health.hold(progress, rules, self._settings.objective.penalty)}"
                case "set back":
                    failed = self._judgement.settle()
                    if failed is not None:
                        return failed
                    text = f"{text}. Done: {self._set_back(sign)}"
            if self._journal is not None:
                self._journal.note(progress.images_seen, "warning", text)
            if treatment == "set back":
                break  # the other signs were of the state that is gone
        return None

    def _set_back(self, sign: str) -> str:
        """To the last good checkpoint, or else to the start. Returns what was done."""
        good = None
        if self._ranks.first:
            before = health.onset(sign, self._state.progress)
            good = checkpoints.newest_without(self._directory, health.CURABLE, before)
            checkpoints.mark(self._directory, sign, before)
        path = self._agreed(good)
        self._stepper.set_back(path)
        where = "the start" if path is None else path.name
        return f"set back to the weights of {where}; {health.slow(sign, self._state.progress, self._state.players)}"

    def _write_point(self, values: dict[str, float], stretch: Stretch) -> None:
        assert self._journal is not None and self._account is not None
        self._journal.metrics(self._state.progress.images_seen, values | self._account.figures(stretch))

    def _checkpoint(self) -> Ending | None:
        """Start to save, and to evaluate the averaged model, once the checkpoint before is judged."""
        failed = self._judgement.settle()
        if failed is not None:
            return failed
        progress = self._state.progress
        ruined = health.not_finite({"model": self._state.model, "average": self._state.average.module})
        if self._ranks.any(bool(ruined)):  # the last update; its loss would show it one step later
            ending = self._diverged(progress.images_seen, f"a weight of the {ruined or 'model'}")
            if ending is not None:
                return ending
        save: Save | None = None
        if self._ranks.first:
            save = partial(checkpoints.write, self._directory, self._state.snapshot(), self._description)
        self._judgement.begin(save, last=self._finished() is not None)
        return None

    def _resume(self) -> None:
        """From the checkpoint that rank 0 chooses: ranks that looked for themselves might not see the same."""
        path, troubles = self._chosen()
        if path is not None:
            checkpoints.restore(path, self._state)
            self._judgement.resume(path, last=self._finished() is not None)
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
            checkpoints.set_aside_newer(self._directory, newest)
        return self._agreed(newest), troubles

    def _agreed(self, chosen: Path | None) -> Path | None:
        """The checkpoint that rank 0 chose, on every rank."""
        images = self._ranks.first_says(-1 if chosen is None else checkpoints.images_of(chosen))
        if images < 0:
            return None
        path = checkpoints.folder_of(self._directory, images)
        checkpoints.verify(path)
        return path

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

    def _diverged(self, images_seen: int, what: str) -> Ending | None:
        failed = self._judgement.settle()
        if failed is not None:
            return failed
        ending = diverged(self._directory, self._ranks, images_seen, what)
        return self._see_to([Finding("not_finite", ending.why)])


def _material(settings: Settings, ranks: Ranks) -> Material:
    """Read the data. No collectives: a rank that fails here must not leave others waiting. Raises Mistake."""
    manifest = manifests.load(settings.data.path)
    return Material(feed_of(settings, manifest, ranks), Measure(settings, ranks), manifest.shape)


def _crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
