"""The task registry: what each task shows a network, asks of it and is scored by. Data only, no PyTorch.

Read by config.py (names, classes, defaults), by the loaders (what an image and its label are) and by objective.py, which gives
the algorithm a task's mathematics. A new task of a known form is one entry here; tasks are named nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedhelp_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str
    form: Literal["classes", "mask"]
    """The answer: class probabilities of an image, or the foreground probability of every pixel or voxel."""
    dimensions: Literal[2, 3] = 2
    """Spatial dimensions of an image."""
    channels: Literal[1, 3] = 3
    """3: colour (grey files are shown as colour); 1: grey, colour files are refused."""
    classes: tuple[str, ...]
    """Names in the order of the integer labels; of a mask: what 0 and what 1 means."""
    metrics: tuple[str, ...]
    """Names of the scores, the one that models are compared by first. All but distances lie in [0, 1], larger is better."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Fields of the federation's `algorithm` that this task sets where a file does not, for the paper's other defaults do not fit."""


_CLASSIFICATION = ("balanced_accuracy", "accuracy", "auroc")
_SEGMENTATION = ("dice", "hausdorff95")

_ALL = (
    Task(
        name="melanoma", form="classes", metrics=_CLASSIFICATION,
        classes=("melanoma", "nevus", "basal-cell-carcinoma", "actinic-keratosis", "benign-keratosis", "dermatofibroma", "vascular-lesion",
                 "squamous-cell-carcinoma")),
    Task(
        name="pneumonia", form="classes", metrics=_CLASSIFICATION, classes=("normal", "pneumonia"),
        defaults={"rank_top_k": 1, "augmentation": "mirror"}),
    Task(
        name="lung-segmentation", form="mask", channels=1, metrics=_SEGMENTATION, classes=("background", "lung"),
        defaults={"rank_top_k": 1, "rank_weight": 0.0, "augmentation": "mirror", "proxy_model": "unet2d", "large_model": "unet2d-large"}),
    Task(
        name="brain-segmentation", form="mask", dimensions=3, channels=1, metrics=_SEGMENTATION, classes=("background", "brain"),
        defaults={"rank_top_k": 1, "rank_weight": 0.0, "augmentation": "mirror", "batch_size": 2, "public_batch_size": 2,
                  "proxy_model": "unet3d", "large_model": "unet3d-large"}),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}


def require_scores(name: str) -> None:
    """Nothing where runs and studies can score the task.

    Raises:
        ConfigError: its masks have no place in tables, report and gate yet.
    """
    if TASKS[name].form == "mask":
        able = ", ".join(task.name for task in _ALL if task.form != "mask")
        raise ConfigError(f"task.name: runs and studies can score class numbers, not the masks of {name!r} yet; choose one of {able}")
