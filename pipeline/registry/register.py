"""From a checkpoint to a version of a registered model, with its lineage, and to an alias if it has earned one."""

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation, how
from pipeline.references import Found, find, is_checkpoint, is_model, runs_of
from pipeline.registry import package
from pipeline.registry.card import card
from pipeline.registry.decide import Verdict, decide
from pipeline.registry.versions import CHECKPOINT, EVALUATED, evaluation_of
from pipeline.settings import is_model_name
from pipeline.table import print_table
from pipeline.tracking import connect, local_store, push, run_id
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Description

CHALLENGER, CHAMPION = "challenger", "champion"
MOST = 5_000
"""Characters of a description that MLflow keeps; the package has all of them."""


class Candidate(NamedTuple):
    """What becomes a version of a model."""

    name: str
    """Of the model."""
    found: Found
    description: Description
    evaluation: Evaluation

    @property
    def tags(self) -> dict[str, str]:
        """Figures and lineage."""
        record, checkpoint = self.found.record, self.found.checkpoint
        lineage = {key: value for key, value in record["tags"].items() if key.startswith(("vaegan.", "mlflow.source"))}
        figures = {name: repr(value) for name, value in self.evaluation.figures.items()}
        return (
            figures
            | lineage
            | {
                CHECKPOINT: checkpoints.digest(checkpoint.path),
                EVALUATED: hashlib.sha256(package.text(self.evaluation).encode()).hexdigest(),
                "vaegan.data_sha256": record["data"]["digest"],
                "vaegan.health": ", ".join(self.evaluation.health) or "no sign",
                "vaegan.run": str(self.found.directory),
                "vaegan.images_seen": str(checkpoint.images_seen),
            }
        )


def register(ref: str, name: str, home: Path) -> None:
    """Make a checkpoint, or the best of a run or search, a version of model `name`, and tell what became of it.

    The same checkpoint with the same evaluation is one version however often it is registered. Raises Mistake.
    """
    if is_model(ref):
        raise Mistake(f"{ref} is registered already; name a run or a search")
    if not is_model_name(name):
        raise Mistake(f"--name is {name!r}; expected a name without slashes, colons and quotes")
    candidate = _candidate(ref, name, home)
    _require_measured_alike(ref, candidate, home)
    client = _client(candidate.found)
    alias = _decide_aliases(client, candidate, _version_of(client, candidate) or _log_version(client, candidate))
    server, local = candidate.found.record["tracking_uri"], local_store(home)
    where = "" if home == Path("runs") or server != local else f"--home {shlex.quote(str(home))} "
    named = "" if server == local else f"MLFLOW_TRACKING_URI={shlex.quote(server)} "
    print(f"sample from it: {named}vaegan sample models:/{name}@{alias} {where}--count 64 --seed 0 --out grid.png")


def _candidate(ref: str, name: str, home: Path) -> Candidate:
    found = find(ref, home)
    path, evaluation = found.checkpoint.path, found.checkpoint.evaluation
    _, description = checkpoints.load_average(path)
    if evaluation is None:
        command = f"vaegan evaluate {path} --data {found.settings.data.path} --out {path}/evaluation.json"
        raise Mistake(f"{path} has no readable evaluation.json; `{command}` makes one")
    return Candidate(name, found, description, evaluation)


def _require_measured_alike(ref: str, candidate: Candidate, home: Path) -> None:
    """Of figures that can't be compared none is the best. Raises Mistake."""
    metric, path = candidate.found.settings.checkpoints.metric, candidate.found.checkpoint.path
    runs = [] if is_checkpoint(ref) else runs_of(ref, home)
    evaluations = [one.evaluation for run in runs for one in checkpoints.listed(run) if one.evaluation is not None]
    ways = [how(evaluation.protocols.get(metric, {})) for evaluation in evaluations]
    if any(way != ways[0] for way in ways):
        raise Mistake(
            f"{metric} was measured in several ways of the checkpoints of {ref}, so that none is the best; name the "
            f"folder of one: vaegan register {path.parent}/{checkpoints.PREFIX}... --name {candidate.name}"
        )


def _client(found: Found) -> MlflowClient:
    """The tracker of the run, which must have all of it before anything is registered on top."""
    uri = found.record["tracking_uri"]
    tracker = connect(uri, found.record["experiment"])
    if found.record["parent"] is not None:
        push((found.directory / found.record["parent"]).resolve(), tracker)
    push(found.directory, tracker)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _version_of(client: MlflowClient, candidate: Candidate) -> ModelVersion | None:
    tags = candidate.tags
    for one in client.search_model_versions(f"name = '{candidate.name}'"):
        if all(one.tags.get(key) == tags[key] for key in (CHECKPOINT, EVALUATED)):
            print(f"{candidate.name} version {one.version}: this checkpoint, registered before")
            return one
    return None


def _log_version(client: MlflowClient, candidate: Candidate) -> ModelVersion:
    name, found, description, evaluation = candidate
    about = card(name, found, evaluation)
    with _reopened(client, found):
        info = package.log(found.checkpoint.path, description, evaluation, found.settings.evaluation, about)
    with suppress(MlflowException):  # it exists, as a rule; what else may be wrong shows in the next call
        client.create_registered_model(name)
    try:
        made = client.create_model_version(
            name, info.model_uri, info.run_id, candidate.tags, description=about[:MOST], model_id=info.model_id
        )
    except MlflowException as error:
        raise Mistake(f"--name is {name!r}: {error.message}") from None
    print(f"{name} version {made.version}: {found.record['name']} at {found.checkpoint.images_seen:,} images")
    return made


@contextmanager
def _reopened(client: MlflowClient, found: Found) -> Iterator[None]:
    """The tracker's run of a checkpoint, which MLflow would call finished afterwards whatever it was."""
    tracked = run_id(found.directory)
    if tracked is None:
        raise Mistake(f"{found.directory} is not in the tracker yet: `vaegan tracking sync`")
    before = client.get_run(tracked).info
    with mlflow.start_run(run_id=tracked):
        yield
    if before.end_time is None:
        client.update_run(tracked, status=before.status)
    else:
        client.set_terminated(tracked, before.status, before.end_time)


def _decide_aliases(client: MlflowClient, candidate: Candidate, registered: ModelVersion) -> str:
    """Move the aliases, and tell why. Returns the one that leads to the best there is."""
    name, version = candidate.name, registered.version
    client.set_registered_model_alias(name, CHALLENGER, version)
    champion = _champion(client, name)
    if champion is not None and champion.tags.get(CHECKPOINT) == registered.tags[CHECKPOINT]:
        client.set_registered_model_alias(name, CHAMPION, version)  # its evaluation may be a new one
        print(f"{name}@{CHAMPION} is version {version}: the champion itself")
        return CHAMPION
    settings = candidate.found.settings
    against = None if champion is None else evaluation_of(champion, candidate.found.record["tracking_uri"])
    verdict = decide(candidate.evaluation, against, settings.checkpoints.metric, settings.decision)
    _show(verdict, registered, champion)
    if verdict.promote:
        client.set_registered_model_alias(name, CHAMPION, version)
        print(f"{name}@{CHAMPION} is now version {version}: {verdict.why}")
    elif champion is not None:
        print(f"{name}@{CHAMPION} stays version {champion.version}: {verdict.why}")
    else:
        print(f"{name} has no {CHAMPION} yet: {verdict.why}")
        return CHALLENGER
    return CHAMPION


def _show(verdict: Verdict, registered: ModelVersion, champion: ModelVersion | None) -> None:
    sides = ["" if side is None else f"version {side.version}" for side in (registered, champion)]
    rows = [[*gate[:4], "passed" if gate.passed else "FAILED"] for gate in verdict.gates]
    print_table(["asked", *sides, "has to be", ""], rows)


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None
