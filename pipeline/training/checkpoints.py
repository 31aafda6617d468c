"""Checkpoints of a run: whole or not there, verified before use, the best kept.

    images-000123456/
        model.safetensors  average.safetensors  optimizer-<player>.safetensors
        state.json       progress, and what is needed to build the networks again
        manifest.json    size and sha256 of every file above
        evaluation.json  figures and their protocols, later: an evaluation takes its time

A folder is written under a temporary name and renamed, so a process killed at any moment leaves old checkpoints alone.
No pickle anywhere.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation
from pipeline.rundir import write_atomically
from pipeline.settings import better
from pipeline.training import health
from pipeline.training.state import Progress, Snapshot, Tensors, TrainState
from vaegan import Autoencoder, build, config
from vaegan.networks.ports import Shape

PREFIX, STATE, MANIFEST, EVALUATION = "images-", "state.json", "manifest.json", "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What it takes to build a model again; with its weights, the whole of it."""

    networks: config.Networks
    likelihood: config.Likelihood
    shape: Shape

    def to_json(self) -> dict[str, object]:
        """As `state.json` and a packaged model hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Mapping[str, object]]) -> "Description":
        """Back from `to_json`."""
        return cls(
            networks=config.Networks(**tree["networks"]),  # type: ignore[arg-type]
            likelihood=config.Likelihood(**tree["likelihood"]),  # type: ignore[arg-type]
            shape=tuple(tree["shape"]),  # type: ignore[arg-type]
        )

    def autoencoder(self) -> Autoencoder:
        """The model without its weights."""
        return build(self.networks, self.likelihood, self.shape).autoencoder


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

    path: Path
    images_seen: int
    evaluation: Evaluation | None
    """None until it has been evaluated."""

    @property
    def figures(self) -> Mapping[str, float]:
        """Name -> value; none before the evaluation."""
        return {} if self.evaluation is None else self.evaluation.figures


def write(directory: Path, state: Snapshot, description: Description) -> Path:
    """Save a run's state under its folder. Raises OSError, such as for a full disk, and then leaves nothing behind."""
    path = folder_of(directory, state.images_seen)
    temporary = directory / f".{path.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for name, tensors in state.tensors.items():
            _save(tensors, temporary / f"{name}.safetensors")
        body = {"progress": state.facts, "description": description.to_json()}
        (temporary / STATE).write_text(json.dumps(body, indent=2) + "\n")
        (temporary / MANIFEST).write_text(json.dumps(_fingerprints(temporary), indent=2) + "\n")
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def folder_of(directory: Path, images_seen: int) -> Path:
    """Where a run keeps its checkpoint of this moment."""
    return directory / f"{PREFIX}{images_seen:09d}"


def images_of(path: Path) -> int:
    """The moment of a checkpoint, by its name."""
    return int(path.name.removeprefix(PREFIX))


def restore(path: Path, state: TrainState) -> None:
    """Bring a run back to a checkpoint."""
    state.restore(*_saved(path))


def set_back(path: Path, state: TrainState) -> None:
    """Give a run that goes on the weights of a checkpoint."""
    state.set_back(*_saved(path))


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Put a checkpoint's evaluation beside it. Raises OSError."""
    body = {"checkpoint": digest(path)} | evaluation.to_json()
    write_atomically(path / EVALUATION, json.dumps(body, indent=2) + "\n")


def evaluation_of(path: Path) -> Evaluation | None:
    """What a checkpoint's evaluation found; None where there is none that can be read, or it is another's."""
    try:
        body = json.loads((path / EVALUATION).read_text())
        return Evaluation.from_json(body) if body["checkpoint"] == digest(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def health_of(path: Path) -> tuple[str, ...]:
    """Signs of trouble that a checkpoint carries: its evaluation says them, and without one its state."""
    known = evaluation_of(path)
    if known is not None:
        return known.health
    facts = json.loads((path / STATE).read_text())["progress"]
    return health.carried(Progress(flags=facts["flags"], standing=facts["standing"]))


def load_average(path: Path) -> tuple[Autoencoder, Description]:
    """The averaged model of a checkpoint, and what it is. Raises Mistake where it is damaged, or not ours."""
    verify(path)
    try:
        description = Description.from_json(json.loads((path / STATE).read_text())["description"])
        weights: Tensors = load_file(path / "average.safetensors")
        autoencoder = description.autoencoder()
        autoencoder.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        why = " ".join(str(error).split())
        raise Mistake(f"{path} is whole, but not a checkpoint of this version of vaegan: {why}") from None
    return autoencoder.eval(), description


def verify(path: Path) -> None:
    """Raise Mistake where a checkpoint is not whole, naming the file."""
    try:
        expected = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise Mistake(f"{path} is not a checkpoint: it has no readable {MANIFEST}") from None
    found = _fingerprints(path)
    for name, fingerprint in expected.items():
        if found.get(name) != fingerprint:
            raise Mistake(f"{path / name} is damaged: its size or sha256 differs from {MANIFEST}")


def verify_all(directory: Path) -> None:
    """Raise Mistake where a checkpoint of a run is not whole."""
    for path in _folders(directory):
        verify(path)


def digest(path: Path) -> str:
    """One sha256 of a checkpoint, that of its manifest."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def newest_whole(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with those newer."""
    troubles = []
    for path in reversed(_folders(directory)):
        try:
            verify(path)
        except Mistake as trouble:
            troubles.append(str(trouble))
        else:
            return path, troubles
    return None, troubles


def newest_without(directory: Path, signs: Collection[str], before: int | None) -> Path | None:
    """The newest checkpoint that was evaluated, verifies, and carries none of these signs of trouble.

    before: images seen that it must have fewer of, where a new sign has been coming on since then.
    """
    for path in reversed(_folders(directory)):
        evaluation = evaluation_of(path)
        in_time = before is None or images_of(path) < before
        if in_time and evaluation is not None and not set(signs) & set(evaluation.health):
            with suppress(Mistake):
                verify(path)
                return path
    return None


def mark(directory: Path, sign: str, since: int | None) -> None:
    """Let checkpoints saved while a sign was coming on carry it too, or another set-back would go to one of them.

    since: images seen at its onset, if it came on.
    """
    for path in _folders(directory):
        evaluation = evaluation_of(path)
        if evaluation is not None and since is not None and images_of(path) >= since:
            signs = tuple(sorted({*evaluation.health, sign}))
            with suppress(OSError):  # of a full disk the next checkpoint tells
                write_evaluation(path, replace(evaluation, health=signs))


def set_aside_newer(directory: Path, newest: Path | None) -> None:
    """Take checkpoints newer than the newest whole one out of the way."""
    for path in _folders(directory):
        if newest is None or images_of(path) > images_of(newest):
            set_aside(path)


def set_aside(path: Path) -> None:
    """Take a checkpoint out of the way, so that nothing counts or keeps it."""
    path.rename(path.with_name(f".{path.name}.damaged-{time.time_ns()}"))


def listed(directory: Path) -> list[Checkpoint]:
    """The checkpoints of a run that can be read, oldest first."""
    found = []
    for path in _folders(directory):
        try:
            state = json.loads((path / STATE).read_text())
        except (OSError, ValueError):
            continue
        found.append(Checkpoint(path, state["progress"]["images_seen"], evaluation_of(path)))
    return found


def rank(checkpoint: Checkpoint, metric: str) -> float:
    """What sorts the better checkpoint first, and one that was not evaluated last."""
    sign = 1 if better(metric) == "min" else -1
    return sign * checkpoint.figures.get(metric, sign * inf)


def ranked(checkpoints: Sequence[Checkpoint], metric: str) -> list[Checkpoint]:
    """Best first; of equals the older."""
    return sorted(checkpoints, key=lambda checkpoint: rank(checkpoint, metric))


def surplus(checkpoints: Sequence[Checkpoint], keep: int, metric: str, behind: int | None = None) -> list[Checkpoint]:
    """Which may go: all but the newest, the `keep` best and what was not evaluated.

    behind: for a run that may be set back, how many images trouble may take to show. One more stays for that: the
    newest healthy one that is as far behind the newest, or while there is none the oldest.
    """
    newest = max(checkpoints, key=lambda checkpoint: checkpoint.images_seen, default=None)
    spared = [newest] if newest is None or behind is None else [newest, _retreat(checkpoints, newest, behind)]
    evaluated = [checkpoint for checkpoint in checkpoints if metric in checkpoint.figures]
    return [checkpoint for checkpoint in ranked(evaluated, metric)[keep:] if checkpoint not in spared]


def _retreat(checkpoints: Sequence[Checkpoint], newest: Checkpoint, behind: int) -> Checkpoint | None:
    healthy = [one for one in checkpoints if one.evaluation and not health.CURABLE & set(one.evaluation.health)]
    healthy.sort(key=lambda checkpoint: checkpoint.images_seen)
    far = [checkpoint for checkpoint in healthy if checkpoint.images_seen <= newest.images_seen - behind]
    return next(iter(far[-1:] or healthy), None)


def prune(directory: Path, keep: int, metric: str, behind: int | None = None) -> None:
    """Remove the surplus, renamed first, so that a folder with a checkpoint's name is always a whole one."""
    for checkpoint in surplus(listed(directory), keep, metric, behind):
        doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.removing")
        checkpoint.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _folders(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(directory.glob(f"{PREFIX}*"), key=images_of)


def _saved(path: Path) -> tuple[dict[str, Tensors], dict[str, object]]:
    files = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    return files, json.loads((path / STATE).read_text())["progress"]


def _save(tensors: Tensors, path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from None


def _fingerprints(path: Path) -> dict[str, dict[str, object]]:
    files = sorted(file for file in path.iterdir() if file.name != MANIFEST)
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
