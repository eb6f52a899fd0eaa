"""EfficientNet-Lite0 as an MLflow model ("models from code": no pickle). MLflow runs this file; `save.py` writes the model.

predict: images (N, 224, 224, 3) uint8 -> probabilities (N, C) float32.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray


class EfficientNetTeacher(PythonModel):
    """ImageNet's classes, or those of the artifact `head` where there is one."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights."""
        from network import EfficientNetLite0  # save.py gave it to MLflow, which has it on the path when it loads the model

        self.network = EfficientNetLite0((context.artifacts or {}).get("head"))

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """The probabilities."""
        del context, params
        answers: NDArray[np.float32] = self.network.probabilities(np.asarray(model_input, dtype=np.uint8))
        return answers


mlflow.models.set_model(EfficientNetTeacher())
