"""The code of the model in MLflow's registry ("models from code": no pickle). MLflow runs this file; nobody imports it.

predict: images as they are (files' bytes, paths, arrays in raw units; fedhelp_core/data/given.py) -> a table, a row an image, a column a class.
FedHelp need not be installed: what prepares images lies beside this code as source, the network as an exported program.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class RegisteredModel(PythonModel):
    """A network with the preparation of its images and the names of its answers."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read what was saved beside this code."""
        self.settings = context.model_config
        try:
            import fedhelp_core
        except ModuleNotFoundError:
            carried = str(Path(context.artifacts["preparation"]))
            sys.path.append(carried)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), carried]))  # decoders in processes of their own
        found = ""
        with suppress(ImportError):  # of a FedHelp that has no such module yet
            import fedhelp_core.data.given  # noqa: F401
            from fedhelp_core.config.task import TaskConfig
            from fedhelp_core.data.examples import preparation

            self.task = TaskConfig.model_validate(self.settings["task"])
            found = preparation(self.task)
        if found != self.settings["preprocessing"]:
            raise MlflowException.invalid_parameter_value(
                f"the FedHelp that is installed here prepares images as {found!r}, this model's were {self.settings['preprocessing']!r}; install"
                f" fedhelp=={self.settings['fedhelp']}, or load the model where FedHelp is not installed")
        self.network = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Probabilities of classes or findings by name; of masks the foreground's mask, and its probabilities where `params` asks for them.

        `model_input` is whatever `images_in` knows, of which a table is one: MLflow warns at each load of hints that it does not know.
        """
        del context
        from fedhelp_core.data.given import images_in, prepared
        from fedhelp_core.data.unusable import Unusable

        serving = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true"
        try:
            images = images_in(model_input, self.task)
            cubes = [prepared(image, self.task, f"image {number}", paths=not serving) for number, image in enumerate(images)]
        except Unusable as e:
            raise MlflowException.invalid_parameter_value(str(e)) from None
        if not cubes:
            raise MlflowException.invalid_parameter_value("images: at least one expected, got none")
        answers_NC = self._answers(np.stack(cubes))
        classes = self.task.classes
        if answers_NC.ndim == 2:
            return pd.DataFrame(answers_NC, columns=list(classes))
        regions = self.settings["task"].get("form") == "regions"
        names = classes if regions else classes[1:]
        first = 0 if regions else 1  # channel of a mask's background
        likeliest = answers_NC.argmax(axis=1)
        found = {}
        for number, name in enumerate(names, start=first):
            inside = [one[number] > 0.5 for one in answers_NC] if regions or len(names) == 1 else [one == number for one in likeliest]
            found[name] = [mask.astype(np.uint8) for mask in inside]
            if (params or {}).get("probabilities"):
                found[f"{name} probability"] = [one[number] for one in answers_NC]
        return pd.DataFrame(found)

    def _answers(self, images_NCS: Any) -> Any:
        """Probabilities (N, classes, ...) of prepared images, each computed by itself: a batch's size would change the last digits."""
        with torch.inference_mode():
            return torch.cat([self.network(one) for one in torch.split(torch.from_numpy(images_NCS).float(), 1)]).numpy()


mlflow.models.set_model(RegisteredModel())
