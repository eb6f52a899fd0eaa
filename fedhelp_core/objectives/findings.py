"""Several findings at once: Eq 1-5 over a probability of each finding. Passed into the algorithm by whoever calls it.

Shapes: N images, K findings. Labels are 0, 1 or NOT_LABELLED.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.algorithm.losses import FINDINGS
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import OperatingPoint
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.metrics import findings_scores
from fedhelp_core.objectives.of_images import OfImages
from fedhelp_core.registry.tasks import NOT_LABELLED


class FindingsOfImages(nn.Module):
    """Pixels in, a probability of each finding out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, K) float32, each by itself."""
        logits_BK: Tensor = self.network(to_input(images_BCHW, images_BCHW.device))
        return logits_BK.sigmoid()


class Findings(OfImages):
    """A probability of each finding."""

    terms = FINDINGS
    decides = False

    def __init__(self, task: TaskConfig) -> None:
        super().__init__(task)
        self.ranks = self.outputs > 1

    def counts(self, targets_NK: Tensor) -> list[int]:
        """Images that show each finding."""
        found: list[int] = (targets_NK == 1).sum(dim=0).tolist()
        return found

    def answers(self, logits: Tensor) -> Tensor:
        """A probability of each finding."""
        return logits.sigmoid()

    def served(self, model: nn.Module, point: OperatingPoint | None = None) -> nn.Module:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, K)."""
        return FindingsOfImages(model)

    def scores_of(self, results: Results, point: OperatingPoint | None = None) -> Scored:
        """The scores of metrics.py, of each finding too, and counts (K, 4) at probability 0.5."""
        scores, of_each, counts_K4 = findings_scores(results["labels"], results["probabilities"])
        return Scored(self._chosen(scores), counts_K4, of_each={name: values for name, values in of_each.items() if name in self._task.metrics})

    def merits(self, results: Results, point: OperatingPoint | None = None) -> npt.NDArray[np.float64]:
        """1 less the Brier score of what is labelled, 0 of an image without a label: AUROC is of no single image."""
        labels_NK, probabilities_NK = results["labels"], results["probabilities"].astype(np.float64)
        labelled_NK = labels_NK != NOT_LABELLED
        wrong_N = ((probabilities_NK - labels_NK) ** 2 * labelled_NK).sum(axis=1) / np.maximum(labelled_NK.sum(axis=1), 1)
        merits_N: npt.NDArray[np.float64] = np.where(labelled_NK.any(axis=1), 1 - wrong_N, 0.0)
        return merits_N
