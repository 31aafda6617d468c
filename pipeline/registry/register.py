"""From a checkpoint to a version of a registered model, with its lineage, and to an alias if it has earned one."""

import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import vaegan
from pipeline.errors import Mistake
from pipeline.references import Found, find, is_model
from pipeline.registry.decide import Contender, Promote, decide
from pipeline.settings import is_model_name
from pipeline.tracking import connect, local_store, push, run_id
from pipeline.training import checkpoints

CHALLENGER, CHAMPION = "challenger", "champion"
CHECKPOINT, DATA, PROTOCOL = "vaegan.checkpoint_sha256", "vaegan.data_sha256", "vaegan.protocol"


def register(ref: str, name: str, home: Path) -> None:
    """Make the best checkpoint of a run or search a version of model `name`, and tell what became of it.

    The same checkpoint registered twice is one version. Raises Mistake.
    """
    if is_model(ref):
        raise Mistake(f"{ref} is registered already; name a run or a search")
    if not is_model_name(name):
        raise Mistake(f"--name is {name!r}; expected a name without slashes, colons and quotes")
    found = find(ref, home)
    client = _client(found)
    registered = _version_of(client, name, found) or _log_version(client, name, found)
    _decide_aliases(client, name, registered, found)
    server, local = found.record["tracking_uri"], local_store(home)
    where = "" if home == Path("runs") or server != local else f"--home {shlex.quote(str(home))} "
    named = "" if server == local else f"MLFLOW_TRACKING_URI={shlex.quote(server)} "
    print(f"sample from it: {named}vaegan sample models:/{name}@{CHAMPION} {where}--count 64 --seed 0 --out grid.png")


def _client(found: Found) -> MlflowClient:
    """The tracker of the run, which must have all of it before anything is registered on top."""
    uri = found.record["tracking_uri"]
    tracker = connect(uri, found.record["experiment"])
    if found.record["parent"] is not None:
        push((found.directory / found.record["parent"]).resolve(), tracker)
    push(found.directory, tracker)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _version_of(client: MlflowClient, name: str, found: Found) -> ModelVersion | None:
    digest = checkpoints.digest(found.checkpoint.path)
    for one in client.search_model_versions(f"name = '{name}'"):
        if one.tags.get(CHECKPOINT) == digest:
            print(f"{name} version {one.version}: this checkpoint, registered before")
            return one
    return None


def _log_version(client: MlflowClient, name: str, found: Found) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder, _reopened(client, found):
        info = _log_model(name, found, Path(folder))
    with suppress(MlflowException):  # it exists, as a rule; what else may be wrong shows in the next call
        client.create_registered_model(name)
    try:
        made = client.create_model_version(
            name, info.model_uri, info.run_id, _tags(found), description=_card(name, found), model_id=info.model_id
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


def _log_model(name: str, found: Found, folder: Path) -> ModelInfo:
    """A models-from-code pyfunc: this package's pyfunc.py, the vaegan package, safetensors and JSON; no pickle."""
    _, description = checkpoints.load_average(found.checkpoint.path)
    (folder / "description.json").write_text(json.dumps(description.to_json(), indent=2) + "\n")
    (folder / "README.md").write_text(_card(name, found))
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={
            "weights": str(found.checkpoint.path / "average.safetensors"),
            "description": str(folder / "description.json"),
            "card": str(folder / "README.md"),
        },
        code_paths=[str(Path(str(vaegan.__file__)).parent)],
        signature=_signature(),
        input_example=np.zeros((1, *description.shape), dtype=np.float32),
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "safetensors", "torch")],
    )


def _signature() -> ModelSignature:
    """Four dimensions in and out, for images and for codes alike."""
    tensor = Schema([TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1))])
    params = ParamSchema(
        [ParamSpec("task", "string", "reconstruct"), ParamSpec("count", "long", 16), ParamSpec("seed", "long", 0)]
    )
    return ModelSignature(tensor, tensor, params)


def _decide_aliases(client: MlflowClient, name: str, candidate: ModelVersion, found: Found) -> None:
    client.set_registered_model_alias(name, CHALLENGER, candidate.version)
    champion = _aliased(client, name)
    if champion is not None and champion.version == candidate.version:
        print(f"{name}@{CHAMPION} is version {champion.version} already")
        return
    metric = found.settings.checkpoints.metric
    decision = decide(_contender(candidate), None if champion is None else _contender(champion), metric)
    if isinstance(decision, Promote):
        client.set_registered_model_alias(name, CHAMPION, candidate.version)
        print(f"{name}@{CHAMPION} is now version {candidate.version}: {decision.why}")
    elif champion is not None:
        print(f"{name}@{CHAMPION} stays version {champion.version}: {decision.why}")


def _aliased(client: MlflowClient, name: str) -> ModelVersion | None:
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None


def _contender(registered: ModelVersion) -> Contender:
    figures = {name: float(value) for name, value in registered.tags.items() if name.startswith("eval/")}
    return Contender(figures, registered.tags.get(PROTOCOL, ""))


def _tags(found: Found) -> dict[str, str]:
    """Figures and lineage of a version."""
    record = found.record
    lineage = {key: value for key, value in record["tags"].items() if key.startswith(("vaegan.", "mlflow.source"))}
    return (
        {metric: repr(value) for metric, value in found.checkpoint.figures.items()}
        | lineage
        | {
            CHECKPOINT: checkpoints.digest(found.checkpoint.path),
            DATA: record["data"]["digest"],
            PROTOCOL: _protocol(found),
            "vaegan.run": str(found.directory),
            "vaegan.images_seen": str(found.checkpoint.images_seen),
        }
    )


def _protocol(found: Found) -> str:
    how = found.settings.evaluation
    data = found.record["data"]["digest"][:12]
    return f"data {data}, {how.images} images of its {how.split} split, {how.samples} samples"


def _card(name: str, found: Found) -> str:
    """What a person should know of a version, as Markdown."""
    settings, record = found.settings, found.record
    objective, networks = settings.objective, settings.networks
    figures = "\n".join(f"| {metric} | {value:.4g} |" for metric, value in found.checkpoint.figures.items())
    return f"""# {name}

A VAE-GAN trained on `{record["data"]["source"]}` (sha256 `{record["data"]["digest"][:12]}`), run `{record["name"]}`,
after {found.checkpoint.images_seen:,} images; averaged weights.

| figure, on the {settings.evaluation.split} split | value |
| --- | --- |
{figures}

- networks: {networks.family}, width {networks.width}, latent {networks.latent}
- objective: {objective.schedule}, {objective.likelihood.kind} likelihood on {objective.reconstruction}, \
beta {objective.beta:g}, lambda {objective.lambda_:g}
- command: `{record["tags"].get("vaegan.command", "unknown")}`
- commit: {record["tags"].get("mlflow.source.git.commit", "unknown")}

`predict(x, params={{"task": "sample" | "encode" | "decode" | "reconstruct", "count": 16, "seed": 0}})`: images are
float32 (N, C, H, W) in [0, 1], codes (N, {networks.latent}, 1, 1).
"""
