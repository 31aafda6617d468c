"""A run on the cluster, from preflight to ending."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.cluster import COLLECTIVE_TIMEOUT_S
from pipeline.data import manifest as manifests
from pipeline.data.manifest import Manifest
from pipeline.errors import Failure, Mistake
from pipeline.evaluation import curves, pictures
from pipeline.evaluation.measure import Measure
from pipeline.lineage import lineage
from pipeline.ranks import Ranks
from pipeline.rundir import PICTURES, Journal, Record, ended, new_record, read_journal
from pipeline.settings import Settings, dump, identity
from pipeline.tracking import store_uri
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.start import Start
from pipeline.training.worker import run_worker
from vaegan import build

KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"
}
"""glibc would give large tensors back to the kernel as soon as they are freed, and ask for their pages again in the
next step, a fault each: 5 to 10 % of a float32 step on a CPU."""


class Outcome(NamedTuple):
    """What a run came to."""

    directory: Path
    why: str
    best: Checkpoint
    newest: Checkpoint


def preflight(settings: Settings) -> Manifest:
    """The data of a run, once every mistake has been looked for that shows without a cluster. Raises Mistake."""
    manifest = manifests.load(settings.data.path)
    for split in ("train", settings.evaluation.split):
        if split not in manifest.splits:
            raise Mistake(
                f"data.path {settings.data.path!r} has no split {split!r}; it has {', '.join(manifest.splits)}"
            )
    rows, few = manifest.rows(settings.evaluation.split), 3
    if rows < few:
        raise Mistake(f"the split {settings.evaluation.split!r} has {rows} images; a figure takes {few} at least")
    _require_fitting_networks(settings, manifest)
    return manifest


def require_measurable(settings: Settings) -> None:
    """Raise Mistake where the data and this machine can't give the figures that checkpoints are ranked by."""
    Measure(settings, Ranks())


def record_of(settings: Settings, manifest: Manifest, tags: dict[str, str], parent: str | None = None) -> Record:
    """The record of a run that is about to start."""
    return new_record(
        dump(settings),
        identity(settings, manifest.digest),
        data_of(settings, manifest),
        store_uri(settings),
        tags,
        parent,
    )


def data_of(settings: Settings, manifest: Manifest) -> dict[str, str]:
    """What a record says of the data."""
    return {"path": settings.data.path, "digest": manifest.digest, "source": manifest.source}


def tags() -> dict[str, str]:
    """Lineage of what is started now; Ray must be up."""
    return lineage(ray.get_runtime_context().get_job_id())


def run(settings: Settings, directory: Path, start: Start, callbacks: Sequence[object] = ()) -> Outcome:
    """Train on the cluster until the run ends. Raises Mistake or Failure where it ends badly."""
    settings = replace(settings, data=replace(settings.data, path=manifests.absolute(settings.data.path)))
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={
            "settings": dump(settings),
            "directory": str(directory),
            "start": {"since": start.since, "seconds": start.seconds},
        },
        scaling_config=_scaling(settings),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=ray.train.RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            failure_config=ray.train.FailureConfig(max_failures=settings.workers.max_failures),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": KEEP_MEMORY},
        ),
    )
    try:
        why = _fit(trainer, directory)
    finally:
        _draw_curves(directory)
    kept = checkpoints.listed(directory)
    return Outcome(directory, why, checkpoints.ranked(kept, settings.checkpoints.metric)[0], kept[-1])


def _fit(trainer: TorchTrainer, directory: Path) -> str:
    """Train, and write down how it ended, whatever happens; a Ray failure becomes one line. Returns why it ended."""
    status, why = "FAILED", ""
    try:
        kind, why = trainer.fit().return_value
        if kind != "finished":
            raise (Mistake if kind == "mistake" else Failure)(why)
        status = "FINISHED"
        return str(why)
    except ray.train.TrainingFailedError as error:
        translated = _translated(error)
        why = str(translated)
        raise translated from error
    except ray.exceptions.RayError as error:  # the controller died with its cluster
        why = f"the Ray cluster was lost ({type(error).__name__})"
        raise Failure(f"{why}; the same command goes on from the newest checkpoint in {directory}") from error
    except (KeyboardInterrupt, SystemExit):
        status, why = "KILLED", "interrupted"
        raise Failure(f"interrupted; the same command goes on from the newest checkpoint in {directory}") from None
    finally:
        if ended(directory) is None:  # a search closes the trials that it stops, while they die
            kept = checkpoints.listed(directory)
            Journal(directory).note(kept[-1].images_seen if kept else 0, "status", status, why)


def _draw_curves(directory: Path) -> None:
    """For the tracker's gallery, however the run ended; the report draws its own."""
    with suppress(OSError):  # how the run ended matters more than a disk that is full or gone
        events = [event for event, _ in read_journal(directory, 0)]
        panels = curves.panels(curves.points_of(events))
        if panels:
            step = max(event.step for event in events)
            file = pictures.save(curves.drawn(panels), directory / PICTURES / f"curves-{step:09d}.png")
            Journal(directory).picture(step, "curves", file)


def _scaling(settings: Settings) -> ray.train.ScalingConfig:
    workers = settings.workers
    fewest, most = workers.range
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    return ray.train.ScalingConfig(
        num_workers=fewest if fewest == most else (fewest, most),
        use_gpu=workers.gpus > 0,
        resources_per_worker=resources,
    )


def _require_fitting_networks(settings: Settings, manifest: Manifest) -> None:
    """Build the networks without memory for their weights, and look."""
    objective = settings.objective
    try:
        with torch.device("meta"):
            model = build(settings.networks, objective.likelihood, manifest.shape)
        judge = model.discriminator
        blank = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in judge.state_dict().items()}
        judge.load_state_dict(blank, assign=True)  # a forward on meta imports torch's compiler, which takes seconds
        layers = len(judge.judge(torch.empty(1, *manifest.shape)).features)
    except ValueError as error:
        raise Mistake(str(error)) from None
    if objective.reconstruction == "features" and objective.feature_layer > layers:
        raise Mistake(
            f"objective.feature_layer is {objective.feature_layer}; the discriminator has layers 1 to {layers}"
        )


def _translated(error: ray.train.TrainingFailedError) -> Mistake | Failure:
    """The mistake, or the last line of the failure, at the bottom of Ray's account of it."""
    failures = getattr(error, "worker_failures", {})
    first: BaseException = next(iter(failures.values()), error)
    cause = getattr(first, "cause", None) or getattr(first, "_exc", None) or first
    if isinstance(cause, Mistake):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return Failure(f"training failed: {lines[-1] if lines else type(cause).__name__}")
