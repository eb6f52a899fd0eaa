"""The forms of answers that a task may ask for, and the paper's four tasks as documents. Data only, no PyTorch.

A task is the `task` section of federation.yaml (config/task.py); everything reads that section, and tasks are named nowhere else. A preset
fills in what a section of its name leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Form = Literal["classes", "labels", "masks", "regions"]
"""What a model answers with. Of an image: one of the classes; `labels`: for each finding whether it is seen. Of every pixel or voxel: `masks`,
background or one of the foregrounds; `regions`, which overlap: for each region whether it is inside."""

NOT_LABELLED = 255
"""What stands for 0 or 1 in a target that nobody labelled."""

ENOUGH_VALIDATION: Mapping[Form, int] = {"classes": 10, "labels": 10, "masks": 4, "regions": 4}
"""Validation images by which a model is chosen; what fewer say is chance. A class is right or wrong, a mask's score is graded: fewer of them do."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A task that has a name, and what suits it."""

    task: Mapping[str, object]
    """Fields of the `task` section."""
    algorithm: Mapping[str, object] = field(default_factory=dict)
    """Fields of the `algorithm` section, where others than those that its form asks for suit it."""


PRESETS: Mapping[str, Preset] = {
    "melanoma": Preset(
        task={
            "form": "classes",
            "classes": ("melanoma", "nevus", "basal-cell-carcinoma", "actinic-keratosis", "benign-keratosis", "dermatofibroma", "vascular-lesion",
                        "squamous-cell-carcinoma")},
        algorithm={"augmentation": "flips"}),
    "pneumonia": Preset(task={"form": "classes", "classes": ("normal", "pneumonia")}, algorithm={"rank_top_k": 1}),
    "lung-segmentation": Preset(task={"form": "masks", "classes": ("background", "lung")}),
    "brain-segmentation": Preset(task={"form": "masks", "dimensions": 3, "classes": ("background", "brain")}),
}
DEFAULT_PRESET = next(iter(PRESETS))
"""The task of a federation.yaml that names none: the paper's first."""


def algorithm_of(form: object, dimensions: object, classes: int) -> dict[str, object]:
    """Fields of `algorithm` that suit answers of `form` to images of `dimensions`, where the paper's defaults do not."""
    fields: dict[str, object] = {"augmentation": "mirror"}  # what is up and down in a medical image is seldom chance
    if form in ("classes", "labels"):
        return fields | ({"rank_top_k": min(_TOP_K, classes - 1)} if classes > 1 else {"rank_top_k": 1, "rank_weight": 0.0})
    fields |= {"rank_top_k": 1, "rank_weight": 0.0}  # Eq 6: no order among voxels
    return fields | ({"batch_size": 2, "public_batch_size": 2, "proxy_model": "unet3d", "large_model": "unet3d-large"} if dimensions == 3
                     else {"proxy_model": "unet2d", "large_model": "unet2d-large"})


_TOP_K = 5  # of the paper's eight classes
