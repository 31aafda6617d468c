"""The model as MLflow serves it. This file travels with the model, beside the `vaegan` package, and runs without ours.

    predict(x, params={"task": "sample" | "encode" | "decode" | "reconstruct", "count": 16, "seed": 0})

Images are float32 (N, C, H, W) in [0, 1]; codes are (N, Z, 1, 1), so that one signature holds both. `sample` draws
`count` images from the prior and takes no notice of x.
"""

import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from safetensors.torch import load

from vaegan import Autoencoder, build
from vaegan.config import Likelihood, Networks


class VaeganModel(PythonModel):
    """Averaged weights of an autoencoder, and the description they are loaded into."""

    _skip_type_hint_validation = True  # MLflow warns at every load without it; the signature says more than hints could

    autoencoder: Autoencoder
    shape: tuple[int, int, int]

    def load_context(self, context: PythonModelContext) -> None:
        """Build the networks and fill in their weights; no pickle is read. Raises ValueError for damaged weights."""
        description = json.loads(Path(context.artifacts["description"]).read_text())
        self.shape = tuple(description["shape"])
        networks, likelihood = Networks(**description["networks"]), Likelihood(**description["likelihood"])
        self.autoencoder = build(networks, likelihood, self.shape).autoencoder.eval()
        weights = Path(context.artifacts["weights"]).read_bytes()
        if hashlib.sha256(weights).hexdigest() != description["sha256"]:
            raise ValueError("the weights are damaged: their sha256 differs from that in description.json")
        self.autoencoder.load_state_dict(load(weights))

    @torch.inference_mode()
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One task, array to array. Raises ValueError for an unknown one, and for input of the wrong shape."""
        settings = {"task": "reconstruct", "count": 16, "seed": 0} | dict(params or {})
        x = torch.from_numpy(np.array(model_input, dtype=np.float32))
        match settings["task"]:
            case "sample":
                generator = torch.Generator().manual_seed(int(str(settings["seed"])))
                return self.autoencoder.sample(int(str(settings["count"])), generator).numpy()
            case "encode":
                return self.autoencoder.encode(self._images(x))[:, :, None, None].numpy()
            case "decode":
                return self.autoencoder.decode(self._codes(x)).numpy()
            case "reconstruct":
                return self.autoencoder.reconstruct(self._images(x)).numpy()
        raise ValueError(f"params.task is {settings['task']!r}; expected sample, encode, decode or reconstruct")

    def _images(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; expected images (N, {', '.join(map(str, self.shape))})"
            )
        return x

    def _codes(self, x: torch.Tensor) -> torch.Tensor:
        size = self.autoencoder.decoder.latent_size
        if x[0].numel() != size:
            raise ValueError(f"the input has shape {tuple(x.shape)}; expected codes (N, {size}, 1, 1)")
        return x.flatten(1)


mlflow.models.set_model(VaeganModel())
