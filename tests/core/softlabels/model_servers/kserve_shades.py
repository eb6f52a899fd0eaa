"""KServe's models of tests and benchmarks. They run in KServe's own environment.

    python kserve_shades.py PORT SIDE CLASSES

`shades`: shade v is answered with (v/256, 1 - v/256, 0 ...). `masks`: every grey pixel v is foreground with probability v/255.
"""

import sys
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Shades(Model):
    """Looks at one pixel of each image."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__("shades")
        self.side, self.classes = side, classes
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the input."""
        return [{"name": "images", "datatype": "UINT8", "shape": [-1, self.side, self.side, 3]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the output."""
        return [{"name": "scores", "datatype": "FP32", "shape": [-1, self.classes]}]

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None) -> InferResponse:
        """Probabilities per image, as bytes where bytes are asked for."""
        first = payload.inputs[0].as_numpy()[:, 0, 0, 0].astype(np.float32) / 256
        rows = np.zeros((len(first), self.classes), np.float32)
        rows[:, 0], rows[:, 1] = first, 1 - first
        scores = InferOutput("scores", list(rows.shape), "FP32")
        scores.set_data_from_numpy(rows, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, self.name, [scores], use_binary_outputs=payload.use_binary_outputs)


class Masks(Model):
    """Background and foreground of every pixel."""

    def __init__(self, side: int) -> None:
        super().__init__("masks")
        self.side = side
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the input."""
        return [{"name": "images", "datatype": "UINT8", "shape": [-1, 1, self.side, self.side]}]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """What the metadata say of the output."""
        return [{"name": "masks", "datatype": "FP32", "shape": [-1, 2, self.side, self.side]}]

    def predict(self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None) -> InferResponse:
        """Two probabilities per pixel, as bytes where bytes are asked for."""
        bright = payload.inputs[0].as_numpy().astype(np.float32) / 255
        planes = np.concatenate([1 - bright, bright], axis=1)
        masks = InferOutput("masks", list(planes.shape), "FP32")
        masks.set_data_from_numpy(planes, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id, self.name, [masks], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    port, side, classes = (int(argument) for argument in sys.argv[1:])
    ModelServer(http_port=port, enable_grpc=False, workers=1).start([Shades(side, classes), Masks(side)])
