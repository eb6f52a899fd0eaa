"""Several findings at once: Eq 1-5 over a probability of each finding. Passed into the algorithm by whoever calls it.

Shapes: N images, K findings. Labels are 0, 1 or NOT_LABELLED.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import to_input
from fedhelp_core.algorithm.class_shares import Shares, shares_of_finding
from fedhelp_core.algorithm.losses import FINDINGS
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import FindingsPoint, FloatArray, IntArray, OperatingPoint, Point, at_half, both_of
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.metrics import findings_scores
from fedhelp_core.objectives.of_images import OfImages
from fedhelp_core.registry.tasks import NOT_LABELLED


class FindingsOfImages(nn.Module):
    """Pixels in, a probability of each finding out; what is above a half is the operating point's decision."""

    temperature_K: Tensor
    offset_K: Tensor

    def __init__(self, network: nn.Module, point: FindingsPoint) -> None:
        super().__init__()
        self.network = network
        towards = [(one.offsets_C[1] + one.log_occurrence_C[1]) - (one.offsets_C[0] + one.log_occurrence_C[0]) for one in point.of_each]
        temperatures = [one.temperature for one in point.of_each]
        for name, values in (("temperature_K", temperatures), ("offset_K", towards)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, K) float32, each by itself."""
        logits_BK: Tensor = self.network(to_input(images_BCHW, images_BCHW.device))
        return (logits_BK / self.temperature_K + self.offset_K).sigmoid()


class Findings(OfImages):
    """A probability of each finding."""

    terms = FINDINGS
    decides = True

    def __init__(self, task: TaskConfig) -> None:
        super().__init__(task)
        self.ranks = self.outputs > 1

    def counts(self, targets_NK: Tensor) -> list[int]:
        """Images that show each finding."""
        found: list[int] = (targets_NK == 1).sum(dim=0).tolist()
        return found

    def counts_of_decisions(self, targets_NK: Tensor) -> list[list[int]]:
        """Of each finding, images that are labelled to be without it, and with it."""
        return [[int((column_N == 0).sum()), int((column_N == 1).sum())] for column_N in targets_NK.T]

    def learnt_shares(self, class_shares: Sequence[float]) -> list[Shares]:
        """Of each finding, of images without and with it."""
        return [shares_of_finding(share) for share in class_shares]

    def decisions(self, results: Results) -> list[tuple[IntArray, FloatArray]]:
        """Of each finding, over the images in which it is labelled."""
        columns = zip(results["labels"].T, results["probabilities"].T, strict=True)
        return [
            (labels_N[known_N].astype(np.int64), both_of(probability_N[known_N]))
            for labels_N, probability_N in columns for known_N in (labels_N != NOT_LABELLED,)]

    def point_of(self, points: Sequence[OperatingPoint]) -> Point:
        """One of each finding."""
        return FindingsPoint(of_each=tuple(points))

    def answers(self, logits: Tensor) -> Tensor:
        """A probability of each finding."""
        return logits.sigmoid()

    def served(self, model: nn.Module, point: Point | None = None) -> nn.Module:
        """Images (B, C, H, W), values 0..255 -> probabilities (B, K)."""
        return FindingsOfImages(model, self._point(point))

    def _point(self, point: Point | None) -> FindingsPoint:
        return point if isinstance(point, FindingsPoint) else at_half(self.outputs)

    def scores_of(self, results: Results, point: Point | None = None) -> Scored:
        """The scores of metrics.py, of each finding too, and counts (K, 4) at the operating point."""
        scores, of_each, counts_K4 = findings_scores(results["labels"], results["probabilities"], self._point(point))
        return Scored(self._chosen(scores), counts_K4, of_each={name: values for name, values in of_each.items() if name in self._task.metrics})

    def merits(self, results: Results, point: Point | None = None) -> npt.NDArray[np.float64]:
        """1 less the Brier score of what is labelled, 0 of an image without a label: AUROC is of no single image."""
        labels_NK, probabilities_NK = results["labels"], self._point(point).calibrated(results["probabilities"])
        labelled_NK = labels_NK != NOT_LABELLED
        wrong_N = ((probabilities_NK - labels_NK) ** 2 * labelled_NK).sum(axis=1) / np.maximum(labelled_NK.sum(axis=1), 1)
        merits_N: npt.NDArray[np.float64] = np.where(labelled_NK.any(axis=1), 1 - wrong_N, 0.0)
        return merits_N
