"""MLServer's model of the serving benchmark: an exported program, prepared images in, probabilities out. Runs in MLServer's own environment."""

import os
import sys

sys.path.append(os.environ["TORCH_PACKAGES"])  # PyTorch alone is taken from there: everything else is this environment's own

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Program(MLModel):
    """The network with its scaling and operating point, on one thread, as `fedhelp serve` runs it."""

    async def load(self) -> bool:
        """The file that `fedhelp model export --form program` wrote."""
        torch.set_num_threads(1)
        self._program = torch.export.load(os.environ["PROGRAM"]).module()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Class probabilities."""
        images = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]).copy())
        with torch.no_grad():
            found = self._program(images).numpy()
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=[NumpyCodec.encode_output("probabilities", found)])
