"""`vaegan evaluate`: figures of any model on any data, as those of training are, on any number of processes."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.data import manifest as manifests
from pipeline.errors import Failure, Mistake
from pipeline.evaluation.figures import Evaluator, open_evaluator
from pipeline.evaluation.protocol import Evaluation, Protocol, beside
from pipeline.evaluation.seen import Seen
from pipeline.ranks import Ranks
from pipeline.references import find, is_model
from pipeline.rundir import RUN, read_record, write_atomically
from pipeline.settings import Evaluation as Settings
from pipeline.settings import parse
from pipeline.table import print_table
from pipeline.tracking import registry_of
from pipeline.training import checkpoints
from vaegan import Autoencoder
from vaegan.networks.ports import Shape


class Candidate(NamedTuple):
    """A model to be evaluated."""

    model: Autoencoder
    shape: Shape
    """Of its images."""
    checkpoint: str | None
    """The digest of the checkpoint; a registered model has none."""
    settings: Settings
    """Of the evaluations of its training."""
    health: tuple[str, ...]
    """Signs of trouble that its training showed."""


def evaluate_to(
    ref: str,
    data: str,
    home: Path,
    workers: int = 1,
    extractors: Sequence[str] = (),
    samples: int | None = None,
    out: Path | None = None,
) -> None:
    """Print the figures of a model on a data set, and write them with their protocols. Raises Mistake, or Failure.

    ref: a REF, or the folder of a checkpoint. extractors, samples: others than the run's own.
    """
    if workers < 1:
        raise Mistake(f"--workers is {workers}; expected a number of processes >= 1")
    data = manifests.absolute(data)
    candidate, manifest = _candidate(ref, home), manifests.load(data)
    if manifest.shape != candidate.shape:
        raise Mistake(f"--data {data!r} has images of {manifest.shape}; the model's are {candidate.shape}")
    settings = _changed(candidate.settings, extractors, samples)
    evaluator = open_evaluator(data, manifest, settings)
    counts = (
        f"{settings.samples:,} samples and {len(evaluator.held_out.images):,} images of the split {settings.split!r}"
    )
    print(f"{ref}: measuring {counts}", file=sys.stderr)
    if workers == 1:
        codes = evaluator.prior(candidate.model.decoder.latent_size)
        evaluation = evaluator.evaluate(candidate.model, codes)
    else:
        evaluation = _in_ray(evaluator, candidate.model, data, settings, workers)
    evaluation = replace(evaluation, health=candidate.health)
    _print(ref, evaluation, evaluator.absent)
    if out is not None:
        body = {"model": ref, "checkpoint": candidate.checkpoint, **evaluation.to_json()}
        try:
            write_atomically(out, json.dumps(body, indent=2) + "\n")
        except OSError as error:
            raise Mistake(f"--out is {str(out)!r}: {error.strerror or error}") from None


def _candidate(ref: str, home: Path) -> Candidate:
    if is_model(ref):
        from pipeline.registry.load import load
        from pipeline.registry.versions import version_of

        model, shape = load(ref, home)
        version = version_of(ref, registry_of(home))
        return Candidate(model, shape, None, version.settings, version.evaluation.health)
    path, settings = Path(ref), Settings()
    if (home / ref / RUN).exists() or not path.is_dir():
        found = find(ref, home)
        path, settings = found.checkpoint.path, found.settings.evaluation
    elif (record := read_record(path.parent)) is not None:
        settings = parse(record["settings"]).evaluation
    model, description = checkpoints.load_average(path)
    return Candidate(model, description.shape, checkpoints.digest(path), settings, checkpoints.health_of(path))


def _changed(settings: Settings, extractors: Sequence[str], samples: int | None) -> Settings:
    """Other extractors and counts than the run's own, where they are asked for. Raises Mistake."""
    chosen = tuple(dict.fromkeys(extractors)) or settings.extractors
    drawn = settings.samples if samples is None else samples
    try:
        return replace(settings, extractors=chosen, samples=drawn)  # type: ignore[arg-type]
    except ValueError as error:
        raise Mistake(f"--{error}") from None


def _in_ray(evaluator: Evaluator, model: Autoencoder, data: str, settings: Settings, workers: int) -> Evaluation:
    """Every task sees a part; the sums of the parts are those of one process."""
    import ray

    from pipeline.cluster import cluster, in_a_line

    with cluster():
        cores = int(ray.cluster_resources().get("CPU", 0))
        if workers > cores:
            raise Mistake(f"--workers is {workers}; the cluster has {cores} CPUs: ask for {cores} at most")
        if (free := ray.available_resources().get("CPU", 0.0)) < workers:
            print(f"--workers {workers} waits for CPUs: {free:g} of the cluster's {cores} are free", file=sys.stderr)
        part, kept = ray.remote(num_cpus=1)(_part), ray.put(model)
        known = tuple(evaluator.observer.similarities)
        parts = [part.remote(kept, data, settings, Ranks(rank, workers), known) for rank in range(workers)]
        try:
            (reference, seen), *others = ray.get(parts)
        except ray.exceptions.RayError as error:
            raise Failure(f"a part of the evaluation failed: {in_a_line(error)}") from None
    for other_reference, other_seen in others:
        reference.add(other_reference.tensors())
        seen.add(other_seen.tensors())
    evaluator.refer_to(reference)
    return evaluator.conclude(seen, "prior")


def _part(model: Autoencoder, data: str, settings: Settings, share: Ranks, known: tuple[str, ...]) -> tuple[Seen, Seen]:
    """What one of several processes sees of the data and of the model. known: similarities that are to be measured."""
    evaluator = open_evaluator(data, manifests.load(data), settings, share)
    if (here := tuple(evaluator.observer.similarities)) != known:
        raise Mistake(f"a host measures {', '.join(here)}, the first {', '.join(known)}: give all the same weights")
    return evaluator.observer.reference(), evaluator.observer.look(model, evaluator.prior(model.decoder.latent_size))


def _print(ref: str, evaluation: Evaluation, absent: dict[str, str]) -> None:
    print(f"{ref}:")
    rows = [_row(name, value, evaluation.protocols[name]) for name, value in evaluation.figures.items()]
    print_table(["figure", "value", "+-", "real against real", "images", "samples"], rows)
    for why in dict.fromkeys(absent.values()):
        names = [name.removeprefix("eval/") for name, reason in absent.items() if reason == why]
        print(f"without {', '.join(names)}: {why}")


def _row(name: str, value: float, how: Protocol) -> list[str]:
    counts = [f"{how[key]:,}" if key in how else "" for key in ("images", "samples")]
    return [name.removeprefix("eval/"), f"{value:.4g}", *beside(how), *counts]
