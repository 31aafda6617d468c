"""Versions of registered models, and what they carry."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import TypeAdapter

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation
from pipeline.registry.decide import NOBODY
from pipeline.registry.package import DESCRIPTION, EVALUATION, MEASURING
from pipeline.settings import Evaluation as Settings
from pipeline.tracking import require_store

CHECKPOINT = "vaegan.checkpoint_sha256"
"""Tag of the checkpoint that a version was made of."""
EVALUATED = "vaegan.evaluation_sha256"
"""Tag of the evaluation that it was decided by."""


class Version(NamedTuple):
    """What is known of a version."""

    name: str
    number: str
    checkpoint: str
    """sha256 of the checkpoint's manifest."""
    evaluation: Evaluation
    settings: Settings
    """Of its run's evaluations."""


def version_of(ref: str, uri: str) -> Version:
    """The version that models:/NAME@ALIAS or models:/NAME/NUMBER names at a tracker. Raises Mistake."""
    require_store(ref, uri)
    name, alias, number = _taken_apart(ref)
    client = MlflowClient(uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise Mistake(f"{ref}: {error.message.splitlines()[0]} (asked {uri})") from None
    evaluation, settings = evaluation_of(found, uri), _settings_of(found, uri)
    return Version(name, str(found.version), found.tags.get(CHECKPOINT, ""), evaluation, settings)


def evaluation_of(registered: ModelVersion, uri: str) -> Evaluation:
    """What a version at a tracker was decided by; nothing, where it was registered by other means."""
    try:
        return Evaluation.from_json(_packaged(registered, uri, EVALUATION))
    except (MlflowException, OSError, ValueError, KeyError):
        return NOBODY


def _settings_of(registered: ModelVersion, uri: str) -> Settings:
    """By which its run was evaluated; the defaults, where its package doesn't say."""
    try:
        return TypeAdapter(Settings).validate_json(json.dumps(_packaged(registered, uri, DESCRIPTION)[MEASURING]))
    except (MlflowException, OSError, ValueError, KeyError):
        return Settings()


def _packaged(registered: ModelVersion, uri: str, file: str) -> dict[str, object]:
    """A file of JSON that came with a version."""
    mlflow.set_tracking_uri(uri)  # the only registry that a download of models:/ asks, whatever it is told
    place = f"models:/{registered.name}/{registered.version}/artifacts/{file}"
    with tempfile.TemporaryDirectory() as folder:
        body: dict[str, object] = json.loads(Path(download_artifacts(place, dst_path=folder)).read_text())
        return body


def _taken_apart(ref: str) -> tuple[str, str, str]:
    rest = ref.removeprefix("models:/")
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return name, alias, ""
    name, _, number = rest.partition("/")
    return name, "", number
