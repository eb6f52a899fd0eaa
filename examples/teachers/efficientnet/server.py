"""EfficientNet-Lite0 behind the Open Inference Protocol, by MLServer: `mlserver start .` in a copy of this folder.

With a `head.npz` beside it, which `save.py --labelled` writes, it answers with that head's classes, else with ImageNet's.
"""

from __future__ import annotations

from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from network import EfficientNetLite0


class EfficientNetTeacher(MLModel):
    """One batch at a time."""

    async def load(self) -> bool:
        """Read the weights."""
        head = Path(__file__).with_name("head.npz")
        self.network = EfficientNetLite0(head if head.exists() else None)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Images (N, 224, 224, 3) uint8 -> probabilities (N, C) float32."""
        scores = NumpyCodec.encode_output("scores", self.network.probabilities(NumpyCodec.decode_input(payload.inputs[0])))
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[scores])
