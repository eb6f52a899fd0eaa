"""MLServer's model of the serving benchmark: pictures in, class probabilities out, by an exported program. Runs in MLServer's own environment."""

import io
import os
import sys

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec

sys.path.append(os.environ["TORCH_PACKAGES"])  # PyTorch and Pillow are taken from there: everything else is this environment's own

import torch
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image


class Program(MLModel):
    """The network with its scaling and operating point, on one thread, as `fedhelp serve` runs it."""

    async def load(self) -> bool:
        """The file that `fedhelp model export --form program` wrote."""
        torch.set_num_threads(1)
        self._program = torch.export.load(os.environ["PROGRAM"]).module()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Class probabilities."""
        pictures = [Image.open(io.BytesIO(raw)).convert("RGB") for raw in Base64Codec.decode_input(payload.inputs[0])]
        images = torch.from_numpy(np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])).float()
        with torch.no_grad():
            found = self._program(images).numpy()
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=[NumpyCodec.encode_output("probabilities", found)])
