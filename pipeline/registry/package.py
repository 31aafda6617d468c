"""The form in which a model is registered: models from code, safetensors and JSON; no pickle."""

import hashlib
import json
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import vaegan
from pipeline.evaluation.protocol import Evaluation
from pipeline.settings import Evaluation as Settings
from pipeline.training.checkpoints import Description

WEIGHTS, DESCRIPTION, EVALUATION, CARD = "average.safetensors", "description.json", "evaluation.json", "README.md"
MEASURING = "evaluation"
"""Key of the settings of the run's evaluations in the description."""
REQUIREMENTS = ("mlflow", "numpy", "safetensors", "torch")


def log(checkpoint: Path, description: Description, evaluation: Evaluation, settings: Settings, card: str) -> ModelInfo:
    """Log the averaged model of a checkpoint to the tracker's run that is open.

    settings: of the run's evaluations. This package's pyfunc.py and the vaegan package travel with it.
    """
    weights = checkpoint / WEIGHTS
    described = description.to_json() | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    described |= {MEASURING: asdict(settings)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")
        (folder / EVALUATION).write_text(text(evaluation))
        (folder / CARD).write_text(card)
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={
                "weights": str(weights),
                "description": str(folder / DESCRIPTION),
                "evaluation": str(folder / EVALUATION),
                "card": str(folder / CARD),
            },
            code_paths=[str(Path(str(vaegan.__file__)).parent)],
            signature=_signature(),
            input_example=np.zeros((1, *description.shape), dtype=np.float32),
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        )


def text(evaluation: Evaluation) -> str:
    """As a package holds it."""
    return json.dumps(evaluation.to_json(), indent=2) + "\n"


def _signature() -> ModelSignature:
    """Four dimensions in and out, for images and for codes alike."""
    tensor = Schema([TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1))])
    params = ParamSchema(
        [ParamSpec("task", "string", "reconstruct"), ParamSpec("count", "long", 16), ParamSpec("seed", "long", 0)]
    )
    return ModelSignature(tensor, tensor, params)
