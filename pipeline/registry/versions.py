"""Versions of registered models, as their tags describe them."""

from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import Mistake
from pipeline.evaluation.protocol import Evaluation
from pipeline.registry.register import CHECKPOINT


class Version(NamedTuple):
    """What is known of a version."""

    name: str
    number: str
    checkpoint: str
    """sha256 of the checkpoint's manifest."""
    evaluation: Evaluation


def version_of(ref: str, uri: str) -> Version:
    """The version that models:/NAME@ALIAS or models:/NAME/NUMBER names at a tracker. Raises Mistake."""
    name, alias, number = _taken_apart(ref)
    client = MlflowClient(uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise Mistake(f"{ref}: {error.message.splitlines()[0]} (asked {uri})") from None
    figures = {key: float(value) for key, value in found.tags.items() if key.startswith("eval/")}
    return Version(name, str(found.version), found.tags.get(CHECKPOINT, ""), Evaluation(figures=figures, protocols={}))


def _taken_apart(ref: str) -> tuple[str, str, str]:
    rest = ref.removeprefix("models:/")
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return name, alias, ""
    name, _, number = rest.partition("/")
    return name, "", number
