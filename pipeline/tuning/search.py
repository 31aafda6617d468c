"""A search with Ray Tune: every trial is a Train run of its own, ranked by a figure free of the searched weights."""

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from pipeline.errors import Failure, Mistake
from pipeline.rundir import Journal, ended, open_record, read_journal, read_record
from pipeline.settings import Tree, better, parse
from pipeline.training.start import Start
from pipeline.tuning.space import Distribution, Space, filled

IMAGES = "images_seen"
TUNE = "tune"
"""Ray Tune's own folder in a search's; nothing of ours reads it."""


def fit(space: Space, directory: Path, concurrent: int, tags: dict[str, str]) -> None:
    """Run the trials, or those that an earlier call has not finished. A trial that fails ends alone.

    Ray's own state of an earlier call is dropped. Trials, drawn again from the same seed, tell their past themselves:
    a search may go on with other room or another version of Ray, and nobody's pickles are read.
    """
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # each has its line already
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(directory / TUNE, ignore_errors=True)
    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(run_trial, base=space.base, directory=str(directory), tags=tags),
            {"CPU": space.search.driver_cpus},
        ),
        param_space={path: sampler(leaf) for path, leaf in space.leaves.items()},
        tune_config=_tune_config(space, concurrent),
        run_config=tune.RunConfig(
            name=TUNE, storage_path=str(directory), callbacks=[StatusWriter(directory)], verbose=0
        ),
    ).fit()


def _tune_config(space: Space, concurrent: int) -> tune.TuneConfig:
    settings, search = parse(space.base), space.search
    metric = settings.checkpoints.metric
    scheduler = ASHAScheduler(
        time_attr=IMAGES,
        max_t=settings.stop.images + settings.data.batch,
        grace_period=min(search.grace, settings.stop.images),
        reduction_factor=search.reduction,
    )
    return tune.TuneConfig(
        metric=metric,
        mode=better(metric),
        num_samples=search.trials,
        max_concurrent_trials=concurrent,  # without it drivers take the CPUs that workers wait for
        scheduler=scheduler,
        search_alg=BasicVariantGenerator(random_state=search.seed, max_concurrent=concurrent),
    )


def run_trial(config: Mapping[str, object], base: Tree, directory: str, tags: dict[str, str]) -> None:
    """One trial, in a process of its own; what it measured in an earlier call it says first."""
    began, name = time.time(), trial_name(tune.get_context().get_trial_id())
    trial = Path(directory) / name
    settings = parse({**filled(base, config), "name": name, "home": directory})
    for event, _ in read_journal(trial, 0):
        if settings.checkpoints.metric in event.body:
            tune.report({**event.body, IMAGES: event.step})
    if ended(trial) == "FINISHED":
        return
    from pipeline.training import launch  # torch: a trial that has ended needs none

    try:
        manifest = launch.preflight(settings)
        open_record(trial, launch.record_of(settings, manifest, tags, parent=".."))
        launch.run(settings, trial, Start(began), [TuneReportCallback()])
    except (Failure, Mistake) as trouble:
        if ended(trial) != "FINISHED":  # one that the search stops loses its cluster as it dies
            Journal(trial).note(0, "warning", str(trouble))
        raise


def trial_name(trial_id: str) -> str:
    """Ray's id of a trial, which a resumed search keeps -> its folder."""
    return f"trial-{trial_id.rpartition('_')[2]}"


def sampler(leaf: Distribution) -> object:
    """Ray Tune's own form of a distribution."""
    values = list(leaf.values)
    match leaf.kind:
        case "uniform":
            return tune.uniform(*values)
        case "loguniform":
            return tune.loguniform(*values)
        case "choice":
            return tune.choice(values)
        case _:
            return tune.grid_search(values)


class StatusWriter(tune.Callback):  # type: ignore[misc]
    """Writes down how a trial ended where the trial can't: one that ASHA stops is killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._close(trial, "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._close(trial, "FAILED")

    def _close(self, trial: Trial, status: str) -> None:
        directory = self._directory / trial_name(trial.trial_id)
        if read_record(directory) is not None and not ended(directory):
            Journal(directory).note(int(trial.last_result.get(IMAGES, 0)), "status", status)
