"""The code of the demo teacher's MLflow model ("models from code": no pickle). MLflow runs this file; nobody imports it.

predict: images (N, S, S, 3) uint8 -> probabilities (N, C) float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from fedhelp_core.algorithm.inference import probabilities
from fedhelp_core.models import build_model
from fedhelp_core.softlabels.demo_teacher import ARCHITECTURE
from fedhelp_core.weights import read_weights


class DemoTeacher(PythonModel):
    """A CIFAR ResNet over the public classes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights that were saved beside this code."""
        weights = read_weights(Path(context.artifacts["weights"]), expected=None, max_bytes=2**30, sha256=None)
        self.model = build_model(ARCHITECTURE, outputs=int(context.model_config["classes"]))
        self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Class probabilities (N, C) of images (N, S, S, 3) uint8."""
        del context, params
        images_NCHW = torch.from_numpy(np.asarray(model_input, dtype=np.uint8)).permute(0, 3, 1, 2).contiguous()
        answers: NDArray[np.float32] = probabilities(self.model, images_NCHW, torch.device("cpu")).numpy()
        return answers


mlflow.models.set_model(DemoTeacher())
