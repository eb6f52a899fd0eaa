"""Classification: Eq 1-5 over class probabilities. Passed into the algorithm by whoever calls it.

Shapes: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Augment, flip_at_random, to_input
from fedhelp_core.algorithm.losses import CLASSES
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import OperatingPoint, likeliest
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.models.build import build_model
from fedhelp_core.objectives.metrics import classification_scores, confusion_matrix

_BATCH = 256  # large enough to keep the arithmetic busy, small enough for any GPU that trains at batch 4


class ImageClassifier(nn.Module):
    """Pixels in, class probabilities out, so that a user needs to know nothing of our scaling; the likeliest class is the operating point's."""

    offsets_C: Tensor

    def __init__(self, network: nn.Module, point: OperatingPoint) -> None:
        super().__init__()
        self.network = network
        self._temperature = point.temperature
        self.register_buffer("offsets_C", torch.tensor(point.offsets_C, dtype=torch.float32), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W), values 0..255 -> class probabilities (B, classes) float32."""
        logits_BC = self.network(to_input(images_BCHW, images_BCHW.device))
        probabilities: Tensor = (logits_BC / self._temperature + self.offsets_C).softmax(dim=-1)
        return probabilities


class Classification:
    """One label per image."""

    terms = CLASSES
    ranks = True
    visits = 1
    decides = True

    def __init__(self, task: TaskConfig) -> None:
        self.classes = task.classes
        self.dimensions: int = task.dimensions
        self.headline = task.headline
        self.outputs = len(task.classes)
        self.trained_shape = self.answered_shape = (task.channels, *(task.image_size,) * task.dimensions)
        self._task = task

    def build(self, model: ModelConfig | str, generator: torch.Generator | None = None) -> nn.Module:
        """The classifier `model`."""
        return build_model(
            model, outputs=self.outputs, in_channels=self._task.channels, answer="classes", dimensions=self._task.dimensions,
            side=self.trained_shape[-1], generator=generator)

    def augmentation(self, kind: str) -> Augment | None:
        """Images flipped: left-right (`mirror`), and top-bottom too (`flips`)."""
        if kind == "none":
            return None
        dimensions = (3,) if kind == "mirror" else (3, 2)
        return lambda images, labels, generator: (flip_at_random(images, generator, dimensions), labels)

    def answers(self, logits: Tensor) -> Tensor:
        """Class probabilities."""
        return logits.softmax(dim=-1)

    def served(self, model: nn.Module, point: OperatingPoint | None = None) -> nn.Module:
        """Images (B, C, H, W), values 0..255 -> class probabilities (B, classes)."""
        return ImageClassifier(model, point or likeliest(self.outputs))

    @torch.no_grad()
    def probabilities(self, model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
        """Class probabilities (N, C). On a CPU an image's do not depend on which others it is asked with."""
        model.eval()
        return torch.cat([self._answers(model, part_BCHW, device) for part_BCHW in torch.split(images_NCHW, _BATCH)])

    def _answers(self, model: nn.Module, images_BCHW: Tensor, device: torch.device) -> Tensor:
        """A batch's. A batch of one would take other kernels, with other last digits: such an image goes with a copy of itself."""
        beside = images_BCHW.expand(2, -1, -1, -1) if len(images_BCHW) == 1 else images_BCHW
        return self.answers(model(to_input(beside, device)).float()).cpu()[: len(images_BCHW)]

    def results(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Results:
        """`labels` (N,) and the model's `probabilities` (N, C)."""
        return {"labels": targets_NK.numpy(), "probabilities": self.probabilities(model, images_NCHW, device).numpy()}

    def scores_of(self, results: Results, point: OperatingPoint | None = None) -> Scored:
        """The scores of metrics.py, and counts (C, C) at the operating point and at argmax."""
        labels_N, answers_NC = results["labels"], results["probabilities"]
        decided_N = (point or likeliest(self.outputs)).decided(answers_NC)
        at_point, at_argmax = (confusion_matrix(labels_N, found_N, self.outputs) for found_N in (decided_N, answers_NC.argmax(axis=1)))
        return Scored(classification_scores(labels_N, answers_NC, point), at_point, at_argmax)

    def merits(self, results: Results, point: OperatingPoint | None = None) -> npt.NDArray[np.float64]:
        """Whether it is decided rightly, weighted so that the mean is balanced accuracy."""
        labels_N = results["labels"]
        per_class = np.bincount(labels_N, minlength=self.outputs)
        right_N = (point or likeliest(self.outputs)).decided(results["probabilities"]) == labels_N
        merits_N: npt.NDArray[np.float64] = right_N * len(labels_N) / ((per_class > 0).sum() * per_class[labels_N])
        return merits_N

    def scored(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Scored:
        """`scores_of` at argmax."""
        return self.scores_of(self.results(model, images_NCHW, targets_NK, device))
