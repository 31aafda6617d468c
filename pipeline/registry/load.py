"""A registered model, loaded."""

import os
from pathlib import Path

from pipeline.errors import Mistake
from pipeline.tracking import registry_of, require_store
from vaegan import Autoencoder
from vaegan.networks.ports import Shape


def load(ref: str, home: Path) -> tuple[Autoencoder, Shape]:
    """The autoencoder of models:/NAME@ALIAS or models:/NAME/VERSION, and the shape of its images. Raises Mistake.

    Nothing is unpickled.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    uri = registry_of(home)
    require_store(ref, uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(uri)
    try:
        flavours = mlflow.models.get_model_info(ref).flavors
        if not {"weights", "description"} <= flavours.get("python_function", {}).get("artifacts", {}).keys():
            raise Mistake(f"{ref} is not a model of ours: it was not made by `vaegan register`")
        model = mlflow.pyfunc.load_model(ref).unwrap_python_model()
    except MlflowException as error:
        raise Mistake(f"{ref}: {error.message.splitlines()[0]} (asked {uri})") from None
    except ValueError as error:
        raise Mistake(f"{ref}: {error}") from None
    return model.autoencoder, model.shape
