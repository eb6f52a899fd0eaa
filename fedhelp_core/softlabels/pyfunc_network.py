"""The code of a teacher that `fedhelp teacher` made ("models from code": no pickle). MLflow runs this file; nobody imports it.

predict: images (N, S, S, C) uint8 -> probabilities (N, classes) float32. It needs PyTorch alone: the network is an exported program.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray


class NetworkTeacher(PythonModel):
    """A network with the preparation of its images."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the program."""
        self.settings = context.model_config
        self.network = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Class probabilities of images (N, S, S, 1 or 3) uint8."""
        del context, params
        images = torch.from_numpy(np.asarray(model_input, dtype=np.uint8)).movedim(-1, 1).float() / 255
        channels = int(self.settings["channels"])
        if images.shape[1] != channels:
            images = images.mean(dim=1, keepdim=True).expand(-1, channels, *images.shape[2:])
        mean, spread = (torch.tensor(self.settings[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        with torch.inference_mode():
            logits = self.network(((images - mean) / spread).contiguous())
        answers: NDArray[np.float32] = logits.float().softmax(dim=-1).numpy()
        return answers


mlflow.models.set_model(NetworkTeacher())
