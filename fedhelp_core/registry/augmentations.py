"""The augmentation registry: which of MONAI's random transforms training may use, and within which ranges. Data only, no PyTorch.

Read by config/algorithm.py; objectives/augmentation.py makes transforms of it. Nothing else can be named, so no file runs code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One transform."""

    changes: str
    """What it does, in words."""
    least: float = 0.0
    most: float = 0.0
    """Between which numbers its range may lie."""
    unit: str = ""
    """Of the range; '' of a transform that takes none."""


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "RandFlip": Augmentation(changes="left and right exchanged"),
    "RandRotate": Augmentation(changes="turned, of volumes about each axis", least=-180, most=180, unit="degrees"),
    "RandZoom": Augmentation(changes="enlarged or made smaller", least=0.5, most=2, unit="times"),
    "RandGaussianNoise": Augmentation(changes="noise, of a standard deviation up to the range's end", least=0, most=128, unit="of 255"),
    "RandGaussianSmooth": Augmentation(changes="blurred", least=0, most=10, unit="pixels"),
    "RandAdjustContrast": Augmentation(changes="gamma, on the image's own range", least=0.2, most=5, unit="exponent"),
    "RandScaleIntensity": Augmentation(changes="intensities multiplied", least=0.1, most=3, unit="times"),
    "RandShiftIntensity": Augmentation(changes="intensities shifted", least=-128, most=128, unit="of 255"),
}
