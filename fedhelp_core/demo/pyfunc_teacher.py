"""The code of the demo teacher's MLflow model ("models from code": no pickle). MLflow runs this file; nobody imports it.

predict: images (N, S, S, C) uint8 -> probabilities (N, C) float32; of one foreground (N, 1, S, S), of several (N, 1 + K, S, S) with the background's
first, of regions (N, K, S, S).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.weights.file import read_weights


class DemoTeacher(PythonModel):
    """A network over the public classes, for any task."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights that were saved beside this code."""
        weights = read_weights(Path(context.artifacts["weights"]), expected=None, max_bytes=2**30, sha256=None)
        self.objective = objective_of(TaskConfig.model_validate(context.model_config["task"]))
        self.model = self.objective.build(context.model_config["architecture"])
        self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
        self.model.eval()

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """The task's answers to images (N, S, S, C) uint8."""
        del context, params
        images_NCHW = torch.from_numpy(np.asarray(model_input, dtype=np.uint8)).movedim(-1, 1).contiguous()
        with torch.no_grad():
            answers: NDArray[np.float32] = self._answers(images_NCHW).numpy()
        if self.objective.form == "masks" and answers.shape[1] > 1:
            return np.concatenate((1 - answers.sum(axis=1, keepdims=True).clip(0, 1), answers), axis=1)
        return answers

    def _answers(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """A batch of pictures in one pass, which is faster than evaluation's way: of a teacher nobody asks the same twice."""
        cpu = torch.device("cpu")
        if self.objective.form in ("classes", "labels"):
            return self.objective.answers(self.model(to_input(images_NCHW, cpu)).float())
        return self.objective.probabilities(self.model, images_NCHW, cpu)


mlflow.models.set_model(DemoTeacher())
