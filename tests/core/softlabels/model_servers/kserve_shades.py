"""KServe's model of the tests: shade v is answered with (v/256, 1 - v/256). Runs in KServe's own environment.

    python kserve_shades.py PORT
"""

import sys
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Shades(Model):
    """Looks at one pixel of each image."""

    def __init__(self) -> None:
        super().__init__("shades")
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the input."""
        return [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the output."""
        return [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}]

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None) -> InferResponse:
        """Two probabilities per image, as bytes where bytes are asked for."""
        first = payload.inputs[0].as_numpy()[:, 0, 0, 0].astype(np.float32) / 256
        scores = InferOutput("scores", [len(first), 2], "FP32")
        scores.set_data_from_numpy(np.stack([first, 1 - first], axis=1), binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, self.name, [scores], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1).start([Shades()])
