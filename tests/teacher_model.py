"""The code of the tests' MLflow teacher ("models from code"). MLflow runs this file; NumPy alone, so that asking it is quick.

predict: images (N, S, S, 3) uint8 -> probabilities (N, C) float32 that depend on the images' colours.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray


class ColourTeacher(PythonModel):
    """A fixed projection of mean colours."""

    def load_context(self, context: PythonModelContext) -> None:
        self.projection = np.random.default_rng(7).normal(size=(3, int(context.model_config["classes"])))

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        logits = np.asarray(model_input).mean(axis=(1, 2)) / 64 @ self.projection
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


mlflow.models.set_model(ColourTeacher())
