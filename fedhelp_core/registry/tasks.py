"""The task registry: what each task shows a network, asks of it and is scored by. Data only, no PyTorch.

Read by config/ (names, classes, defaults), by the loaders (what an image and its label are) and by objectives/, which gives
the algorithm a task's mathematics. A new task with a known answer is one entry here; tasks are named nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Answer = Literal["classes", "mask"]
"""What a model answers with: class probabilities of an image, or the foreground probability of every pixel or voxel."""


ENOUGH_VALIDATION: Mapping[Answer, int] = {"classes": 10, "mask": 4}
"""Validation images by which a model is chosen; what fewer say is chance. A class is right or wrong, a mask's score is graded: fewer of them do."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score that models are compared by."""

    name: str
    """Its key in evaluations, CSV files and MLflow."""
    title: str
    """What people read."""
    larger_is_better: bool = True
    unit: str = ""
    """Of a distance; empty for what lies in [0, 1]."""

    @property
    def most(self) -> float:
        """The largest value that there is: 1, or none of a distance."""
        return math.inf if self.unit else 1.0

    @property
    def label(self) -> str:
        """Title, and unit where there is one."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def gain(self, new: float, old: float) -> float:
        """How much better `new` is than `old`; negative where it is worse."""
        return new - old if self.larger_is_better else old - new

    def worst(self, values: Iterable[float]) -> float:
        """The worst of the finite values; NaN without any."""
        finite = [value for value in values if math.isfinite(value)]
        return (min if self.larger_is_better else max)(finite, default=math.nan)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str
    answer: Answer
    dimensions: Literal[2, 3] = 2
    """Spatial dimensions of an image."""
    channels: Literal[1, 3] = 3
    """3: colour (grey files are shown as colour); 1: grey, colour files are refused."""
    classes: tuple[str, ...]
    """Names in the order of the integer labels; of a mask: what 0 and what 1 means."""
    metrics: tuple[Metric, ...]
    """The scores, the one that tables, report and gate go by first."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Fields of the federation's `algorithm` that this task sets where a file does not, for the paper's other defaults do not fit."""

    @property
    def headline(self) -> Metric:
        """The score that tables, report and gate go by."""
        return self.metrics[0]


_CLASSIFICATION = (
    Metric(name="balanced_accuracy", title="balanced accuracy"), Metric(name="accuracy", title="accuracy"), Metric(name="auroc", title="AUROC"))


def _segmentation(unit: str) -> tuple[Metric, ...]:
    return (Metric(name="dice", title="Dice"), Metric(name="hausdorff95", title="Hausdorff 95", larger_is_better=False, unit=unit))


_ALL = (
    Task(
        name="melanoma", answer="classes", metrics=_CLASSIFICATION,
        classes=("melanoma", "nevus", "basal-cell-carcinoma", "actinic-keratosis", "benign-keratosis", "dermatofibroma", "vascular-lesion",
                 "squamous-cell-carcinoma")),
    Task(
        name="pneumonia", answer="classes", metrics=_CLASSIFICATION, classes=("normal", "pneumonia"),
        defaults={"rank_top_k": 1, "augmentation": "mirror"}),
    Task(
        name="lung-segmentation", answer="mask", channels=1, metrics=_segmentation("pixels"), classes=("background", "lung"),
        defaults={"rank_top_k": 1, "rank_weight": 0.0, "augmentation": "mirror", "proxy_model": "unet2d", "large_model": "unet2d-large"}),
    Task(
        name="brain-segmentation", answer="mask", dimensions=3, channels=1, metrics=_segmentation("mm"), classes=("background", "brain"),
        defaults={"rank_top_k": 1, "rank_weight": 0.0, "augmentation": "mirror", "batch_size": 2, "public_batch_size": 2,
                  "proxy_model": "unet3d", "large_model": "unet3d-large"}),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
