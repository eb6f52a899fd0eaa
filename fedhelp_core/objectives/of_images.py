"""What the forms that answer about an image as a whole have in common: networks, flips, answers. Called by its two neighbours.

Shapes: N images, B batch, C channels, H height, W width (volumes have X, Y, Z in their place).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Augment, flip_at_random, to_input
from fedhelp_core.algorithm.objective import Results, Scored
from fedhelp_core.algorithm.operating_point import Point
from fedhelp_core.config.algorithm import AugmentationConfig
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.models.build import build_model

_BATCH = 256  # on a GPU: large enough to keep the arithmetic busy, small enough for any that trains at batch 4


class OfImages(ABC):
    """One answer an image; what it is, its two subclasses say."""

    visits = 1

    def __init__(self, task: TaskConfig) -> None:
        self.form = task.form
        self.classes = task.classes
        self.dimensions: int = task.dimensions
        self.headline = task.headline
        self.outputs = len(task.classes)
        self.trained_shape = self.answered_shape = (task.channels, *(task.image_size,) * task.dimensions)
        self._task = task

    def build(self, model: ModelConfig | str, generator: torch.Generator | None = None) -> nn.Module:
        """`model` with an output for each class or finding."""
        return build_model(
            model, outputs=self.outputs, in_channels=self._task.channels, answer="classes", dimensions=self.dimensions,
            side=self.trained_shape[-1], generator=generator)

    def augmentation(self, kind: str | tuple[AugmentationConfig, ...]) -> Augment | None:
        """Images flipped: left-right (`mirror`), and along the other sides too (`flips`); or changed by the transforms that are listed."""
        if not isinstance(kind, str):
            from fedhelp_core.objectives.augmentation import steps_of, together  # with MONAI, which classification else never waits for

            return together(steps_of(kind, self.dimensions, per_pixel=False), per_pixel=False)
        if kind == "none":
            return None
        left_right = 3 if self.dimensions == 2 else 2  # volumes are in RAS orientation
        dimensions = (left_right,) if kind == "mirror" else (left_right, *(side for side in range(2, self.dimensions + 2) if side != left_right))
        return lambda images, labels, generator: (flip_at_random(images, generator, dimensions), labels)

    def labelling(self, labelled: tuple[bool, ...] | None) -> Self:
        """Itself: what a silo does not label, its targets say."""
        return self

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Probabilities of `logits`."""

    @abstractmethod
    def scores_of(self, results: Results, point: Point | None = None) -> Scored:
        """The scores of these images."""

    @torch.no_grad()
    def probabilities(self, model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
        """Probabilities (N, outputs). On a CPU an image's do not depend on which others it is asked with, since it is computed by itself.

        Nothing less would hold that for every network: a batch's size chooses the kernels, and their sums differ in the last digits.
        """
        model.eval()
        at_once = 1 if device.type == "cpu" else _BATCH
        return torch.cat([self.answers(model(to_input(part_BCHW, device)).float()).cpu() for part_BCHW in torch.split(images_NCHW, at_once)])

    def results(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Results:
        """`labels` (N,) or (N, K), and the model's `probabilities` (N, outputs)."""
        return {"labels": targets_NK.numpy(), "probabilities": self.probabilities(model, images_NCHW, device).numpy()}

    def scored(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Scored:
        """`scores_of` its results."""
        return self.scores_of(self.results(model, images_NCHW, targets_NK, device))

    def _chosen(self, scores: dict[str, float]) -> dict[str, float]:
        """Those that the task is scored by, in its order."""
        return {name: scores[name] for name in self._task.metrics}

