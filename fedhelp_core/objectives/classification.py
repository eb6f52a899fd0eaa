"""Classification: Eq 1-5 over class probabilities. Passed into the algorithm by whoever calls it.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.algorithm.class_shares import Shares
from fedhelp_core.algorithm.losses import CLASSES
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import FloatArray, IntArray, OperatingPoint, Point, likeliest
from fedhelp_core.objectives.metrics import classification_scores, confusion_matrix
from fedhelp_core.objectives.of_images import OfImages


class ImageClassifier(nn.Module):
    """Pixels in, class probabilities out, so that a user needs to know nothing of our scaling; the likeliest class is the operating point's."""

    offsets_C: Tensor

    def __init__(self, network: nn.Module, point: OperatingPoint) -> None:
        super().__init__()
        self.network = network
        self._temperature = point.temperature
        offsets_C = np.array(point.offsets_C) + np.array(point.log_occurrence_C)
        self.register_buffer("offsets_C", torch.tensor(offsets_C, dtype=torch.float32), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> class probabilities (B, classes) float32."""
        logits_BC = self.network(to_input(images_BCHW, images_BCHW.device))
        probabilities: Tensor = (logits_BC / self._temperature + self.offsets_C).softmax(dim=-1)
        return probabilities


class Classification(OfImages):
    """One class per image."""

    terms = CLASSES
    ranks = True
    decides = True

    def counts(self, targets_NK: Tensor) -> list[int]:
        """Images of each class."""
        found: list[int] = torch.bincount(targets_NK, minlength=self.outputs).tolist()
        return found

    def counts_of_decisions(self, targets_NK: Tensor) -> list[list[int]]:
        """Of the one decision, images of each class."""
        return [self.counts(targets_NK)]

    def learnt_shares(self, class_shares: Sequence[float]) -> list[Shares]:
        """Of the one decision."""
        return [np.array(class_shares)]

    def decisions(self, results: Results) -> list[tuple[IntArray, FloatArray]]:
        """The one."""
        return [(results["labels"], results["probabilities"])]

    def point_of(self, points: Sequence[OperatingPoint]) -> Point:
        """The one."""
        return points[0]

    def answers(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return logits.softmax(dim=-1)

    def served(self, model: nn.Module, point: Point | None = None) -> nn.Module:
        """Images (B, C, H, W), values 0..255 -> class probabilities (B, classes)."""
        return ImageClassifier(model, self._point(point))

    def _point(self, point: Point | None) -> OperatingPoint:
        return point if isinstance(point, OperatingPoint) else likeliest(self.outputs)

    def scores_of(self, results: Results, point: Point | None = None) -> Scored:
        """The scores of metrics.py, and counts (C, C) at the operating point and at argmax."""
        labels_N, answers_NC = results["labels"], results["probabilities"]
        at = self._point(point)
        decided_N = at.decided(answers_NC)
        at_point, at_argmax = (confusion_matrix(labels_N, found_N, self.outputs) for found_N in (decided_N, answers_NC.argmax(axis=1)))
        return Scored(self._chosen(classification_scores(labels_N, answers_NC, at)), at_point, at_argmax)

    def merits(self, results: Results, point: Point | None = None) -> npt.NDArray[np.float64]:
        """Whether it is decided rightly, weighted so that the mean is balanced accuracy."""
        labels_N = results["labels"]
        per_class = np.bincount(labels_N, minlength=self.outputs)
        right_N = self._point(point).decided(results["probabilities"]) == labels_N
        merits_N: npt.NDArray[np.float64] = right_N * len(labels_N) / ((per_class > 0).sum() * per_class[labels_N])
        return merits_N
