"""What the algorithm asks of a task. Implemented in objectives/, passed in by whoever calls the algorithm.

Shapes: N images, B batch, C channels, H and W spatial sides (D, H, W of volumes), K anything per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedhelp_core.algorithm.batches import Augment
from fedhelp_core.algorithm.class_shares import Shares
from fedhelp_core.algorithm.losses import LossTerms
from fedhelp_core.algorithm.operating_point import FloatArray, IntArray, OperatingPoint, Point
from fedhelp_core.config.algorithm import AugmentationConfig
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.registry.tasks import Form

Results = dict[str, npt.NDArray[Any]]
"""All that scores are computed from, by name, a row an image: what is true and what a model said of it."""
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """A model's scores on a set of images, by metric, the main one first; and counts (true class, predicted class), of findings (K, 4)."""

    scores: dict[str, float]
    confusion_CC: Counts
    """Of the decisions at the operating point."""
    argmax_confusion_CC: Counts = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """Of the model's likeliest classes; (0, 0) of other forms."""
    of_each: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> its value for each finding, class or region by itself, in the task's order; none of classes, whose counts say it."""


class Objective(Protocol):
    """A task's mathematics."""

    terms: LossTerms
    """What Eq 1-4 are made of."""
    form: Form
    """Of the task's answers."""
    classes: tuple[str, ...]
    """Names of the classes, findings or regions; of masks: of background and foregrounds."""
    dimensions: int
    """Spatial dimensions of an image: 2 or 3."""
    headline: Metric
    """The score that models are chosen by."""
    ranks: bool
    """Whether Eq 5 has classes to order; False means γ = 0."""
    trained_shape: tuple[int, ...]
    """Of an image, or of the patch of one, that a model is trained on: channels, then spatial sides."""
    answered_shape: tuple[int, ...]
    """Of what a model answers at a time after training: an image, or a window of one."""
    outputs: int
    """Outputs of a model's head, per image or per voxel."""
    visits: int
    """How often an epoch comes to each image."""
    decides: bool
    """Whether hospitals have an operating point of their own; False: masks and regions, which are cut at 0.5."""

    def build(self, model: ModelConfig | str, generator: torch.Generator | None = None) -> nn.Module:
        """`model` for this task; see models.build_model."""

    def augmentation(self, kind: str | tuple[AugmentationConfig, ...]) -> Augment | None:
        """How training images (and what lies on them) are changed at random: `kind` is the config's `augmentation`."""

    def probabilities(self, model: nn.Module, images_NCHW: Tensor, device: torch.device) -> Tensor:
        """Answers (N, ...) float32 on the CPU for uint8 images; the model is left in eval mode."""

    def labelling(self, labelled: tuple[bool, ...] | None) -> Objective:
        """The same mathematics for a silo that labels these answers alone; None: all."""

    def counts(self, targets_NK: Tensor) -> list[int]:
        """Images of each class, or with each finding; of masks, pixels."""

    def counts_of_decisions(self, targets_NK: Tensor) -> list[list[int]]:
        """Of each decision, images by what is true: of classes there is one decision, of findings one each (without, with); of masks none."""

    def learnt_shares(self, class_shares: Sequence[float]) -> list[Shares]:
        """Of each decision, how common its answers are, of what class_shares.json holds."""

    def decisions(self, results: Results) -> list[tuple[IntArray, FloatArray]]:
        """Of each decision, what is true of the images where that is known, and what the model says of the answers (N, answers)."""

    def point_of(self, points: Sequence[OperatingPoint]) -> Point:
        """The operating points of all decisions as one."""

    def answers(self, logits: Tensor) -> Tensor:
        """Probabilities of `logits`."""

    def served(self, model: nn.Module, point: Point | None = None) -> nn.Module:
        """`model` for users: images (B, C, H, W), values 0..255 -> class probabilities (B, classes) or (B, classes, H, W) float32.

        With `point` they are those of classes that are equally common, and the likeliest is the operating point's decision; of findings, what is
        above a half.

        It is exportable for any number of images of the task's own size, and needs nothing of FedHelp when it is loaded.
        """

    def results(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Results:
        """What `model` says of these images, beside what is true; it is left in eval mode. Of one class answers: `labels`, `probabilities`."""

    def scores_of(self, results: Results, point: Point | None = None) -> Scored:
        """The scores of these images, decided at `point`; None: at argmax."""

    def merits(self, results: Results, point: Point | None = None) -> npt.NDArray[np.float64]:
        """How well a model did on each image (N,): the mean is the headline score."""

    def scored(self, model: nn.Module, images_NCHW: Tensor, targets_NK: Tensor, device: torch.device) -> Scored:
        """`scores_of` its results, at argmax."""
