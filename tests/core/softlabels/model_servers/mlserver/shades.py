"""MLServer's model of the tests: shade v is answered with (v/256, 1 - v/256). Runs in MLServer's own environment."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Shades(MLModel):
    """Looks at one pixel of each image."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Two probabilities per image."""
        first = NumpyCodec.decode_input(payload.inputs[0])[:, 0, 0, 0].astype(np.float32) / 256
        scores = NumpyCodec.encode_output("scores", np.stack([first, 1 - first], axis=1))
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[scores])
