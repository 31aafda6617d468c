"""Start a run on the cluster and see it through: preflight, record, workers, ending."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import floor, inf
from pathlib import Path
from typing import NamedTuple

import ray
import ray.train
import torch
from ray.autoscaler.sdk import request_resources
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from pipeline.data import manifest as manifests
from pipeline.data.manifest import Manifest
from pipeline.errors import Failure, Mistake
from pipeline.lineage import lineage
from pipeline.rundir import Journal, Record, ended, new_record
from pipeline.settings import Settings, Workers, dump, identity
from pipeline.tracking import store_uri
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.worker import run_worker
from vaegan import build

COLLECTIVE_TIMEOUT_S = 600


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


def run(settings: Settings, directory: Path, callbacks: Sequence[object] = ()) -> Outcome:
    """Train on the cluster until the run ends. Raises Mistake or Failure where it ends badly."""
    settings = replace(settings, data=replace(settings.data, path=manifests.absolute(settings.data.path)))
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"settings": dump(settings), "directory": str(directory)},
        scaling_config=_scaling(settings),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=ray.train.RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            failure_config=ray.train.FailureConfig(max_failures=settings.workers.max_failures),
            callbacks=list(callbacks),
        ),
    )
    with _status(directory):
        kind, why = trainer.fit().return_value
        if kind != "finished":
            raise (Mistake if kind == "mistake" else Failure)(why)
    kept = checkpoints.listed(directory)
    return Outcome(directory, why, checkpoints.ranked(kept, settings.checkpoints.metric)[0], kept[-1])


@contextmanager
def _status(directory: Path) -> Iterator[None]:
    """Write down how the run ended, whatever happens; a Ray failure becomes one line."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except ray.train.TrainingFailedError as error:
        raise _translated(error) from error
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise Failure(f"interrupted; the same command goes on from the newest checkpoint in {directory}") from None
    finally:
        if ended(directory) is None:  # a search closes the trials that it stops, while they die
            kept = checkpoints.listed(directory)
            Journal(directory).note(kept[-1].images_seen if kept else 0, "status", status)


@contextmanager
def cluster() -> Iterator[bool]:
    """A Ray cluster: the one that RAY_ADDRESS names or that runs here, else one of our own for as long as it takes.

    Yields whether it is our own.
    """
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how late an ending is noticed
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    named = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address="auto", **quiet)
        own = False
    except (ConnectionError, SystemExit):
        if named:
            raise Mistake(f"RAY_ADDRESS is {named!r}: no Ray cluster answers there; start it, or unset it") from None
        ray.init(**quiet)
        own = True
    try:
        yield own
    finally:
        ray.shutdown()


def require_state_api() -> None:
    """Raise Mistake where Ray's dashboard is off.

    Ray Train asks it who is dead; without an answer the CPUs of a stopped trial are never freed.
    """
    try:
        list_actors(limit=1)
    except RayStateApiException:
        raise Mistake(
            "the Ray cluster's dashboard does not answer, and without it stopped trials keep their CPUs; "
            "start Ray with its dashboard (pip install 'ray[default]', no include_dashboard=False)"
        ) from None


def require_room(settings: Settings, own: bool, beside_cpus: float = 0.0) -> int:
    """How many worker groups of the smallest allowed size fit the cluster, each beside a driver of `beside_cpus`.

    Waits `workers.wait_s` for a cluster that may still grow. Raises Mistake where not one fits.
    """
    workers = settings.workers
    deadline = time.monotonic() + (0 if own else workers.wait_s)
    with _asked_for(workers, 0 if own else beside_cpus):
        return _room(settings, deadline, beside_cpus)


@contextmanager
def _asked_for(workers: Workers, beside_cpus: float) -> Iterator[None]:
    """Ask an autoscaler for the workers, so that a cluster scaled to nothing grows; take it back in the end."""
    one = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    request_resources(bundles=[one] * workers.range[0] + ([{"CPU": beside_cpus}] if beside_cpus else []))
    try:
        yield
    finally:
        request_resources(bundles=[])


def _room(settings: Settings, deadline: float, beside_cpus: float) -> int:
    workers = settings.workers
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        groups = _groups(nodes, settings, beside_cpus)
        if groups:
            return groups
        if time.monotonic() >= deadline:
            total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
            raise Mistake(
                f"workers.count is {workers.count!r} with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs each"
                + (f", and {beside_cpus:g} CPUs for the trial's driver" if beside_cpus else "")
                + f": the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} nodes; "
                "lower workers.count or workers.cpus, or wait longer for a cluster that grows with workers.wait_s"
            )
        time.sleep(1.0)


def _groups(nodes: Sequence[dict[str, float]], settings: Settings, beside_cpus: float) -> int:
    """Groups that fit when every worker sits on one node; drivers are taken from the CPUs first."""
    workers = settings.workers
    fewest, _ = workers.range
    groups = 0
    while True:
        needed_cpus = (groups + 1) * beside_cpus
        slots = 0
        for node in nodes:
            spared = min(needed_cpus, node.get("CPU", 0.0))
            needed_cpus -= spared
            by_gpu = node.get("GPU", 0.0) / workers.gpus if workers.gpus else inf
            slots += floor(min((node.get("CPU", 0.0) - spared) / workers.cpus + 1e-9, by_gpu))
        if needed_cpus > 0 or slots < (groups + 1) * fewest:
            return groups
        groups += 1


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
            layers = len(model.discriminator.judge(torch.empty(1, *manifest.shape)).features)
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
