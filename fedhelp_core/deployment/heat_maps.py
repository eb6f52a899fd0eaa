"""Where in an image a classifier looked: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), MONAI's. Called by `results` for its page.

Imports MONAI, which classification otherwise never waits for: import this where pictures are asked for. Shapes: C channels, S the side.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.deployment.scorer import Scorer
from fedhelp_core.lean_monai import GradCAM

_LAYER = "backbone.stage3"  # the last of FedHelp's own networks that still has places: of 32 pixels, 8 x 8


class HeatMaps:
    """Grad-CAM of one model, of whose network it keeps a copy with hooks in it."""

    def __init__(self, scorer: Scorer) -> None:
        self._device = scorer.device
        self._cam = GradCAM(copy.deepcopy(scorer.network), _last_with_places(scorer.network), postprocessing=_as_it_is)

    def heat(self, image_CSS: NDArray[np.uint8], decided: int) -> NDArray[np.float32]:
        """How much each of the network's pixels spoke for class `decided`, (S, S) from 0 to 1, the most at 1; all 0 where none did."""
        input_1CSS = to_input(torch.from_numpy(np.ascontiguousarray(image_CSS[None])), self._device)
        with torch.enable_grad():
            map_11SS = torch.as_tensor(self._cam(input_1CSS, class_idx=decided))
        heat_SS: NDArray[np.float32] = np.asarray(map_11SS.detach().cpu()[0, 0], np.float32)
        most = float(heat_SS.max())
        return heat_SS / most if most > 0 else np.zeros_like(heat_SS)


def _last_with_places(network: nn.Module) -> str:
    """The name of the last layer whose output has places: of another's network, its last convolution."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    return _LAYER if any(name.startswith(f"{_LAYER}.") for name in names) else names[-1]


def _as_it_is(map_11SS: torch.Tensor) -> torch.Tensor:
    """MONAI's own last step would turn the map round: the most important at 0."""
    return map_11SS
