"""MONAI's random transforms as the algorithm's augmentation. Called by the objectives where a federation lists transforms.

Shapes: B batch, C channels, K channels of a target, then the spatial sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedhelp_core import lean_monai as monai
from fedhelp_core.algorithm.batches import Augment
from fedhelp_core.config.algorithm import AugmentationConfig

_IMAGE, _TARGET = "image", "target"
_Made = Callable[[AugmentationConfig, tuple[str, ...], int], Any]


def steps_of(chosen: Sequence[AugmentationConfig], dimensions: int, *, per_pixel: bool) -> list[Any]:
    """The transforms, in the order of the file; what moves pixels moves a mask's with them."""
    keys = (_IMAGE, _TARGET) if per_pixel else (_IMAGE,)
    return [_TRANSFORMS[one.transform](one, keys, dimensions) for one in chosen]


def together(steps: Sequence[Any], *, per_pixel: bool) -> Augment:
    """`steps`, all chance of a batch from one number of its generator."""
    composed = monai.Compose(steps)

    def augment(images_B: Tensor, targets_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        composed.set_random_state(seed=int(torch.randint(0, 2**31, (), generator=generator)))
        if not per_pixel:
            return torch.stack([composed({_IMAGE: image})[_IMAGE] for image in images_B]), targets_B
        changed = [composed({_IMAGE: image, _TARGET: target}) for image, target in zip(images_B, targets_B, strict=True)]
        images, targets = (torch.stack([one[key] for one in changed]) for key in (_IMAGE, _TARGET))
        return images, targets.to(targets_B.dtype)

    return augment


def _modes(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Between pixels of the image, and never between numbers of a mask."""
    return ("bilinear", "nearest")[: len(keys)]


def _flip(one: AugmentationConfig, keys: tuple[str, ...], dimensions: int) -> Any:
    return monai.RandFlipd(keys, prob=one.probability, spatial_axis=0 if dimensions == 3 else 1)


def _rotate(one: AugmentationConfig, keys: tuple[str, ...], dimensions: int) -> Any:
    turn = tuple(math.radians(degrees) for degrees in one.ends)
    ranges = [turn] * (3 if dimensions == 3 else 1)
    return monai.RandAffined(keys, prob=one.probability, rotate_range=ranges, mode=_modes(keys), padding_mode="zeros")


def _zoom(one: AugmentationConfig, keys: tuple[str, ...], dimensions: int) -> Any:
    low, high = one.ends
    modes = ("trilinear" if dimensions == 3 else "bilinear", "nearest")[: len(keys)]
    return monai.RandZoomd(keys, prob=one.probability, min_zoom=low, max_zoom=high, mode=modes, padding_mode="constant")


def _noise(one: AugmentationConfig, _keys: tuple[str, ...], _dimensions: int) -> Any:
    return monai.RandGaussianNoised((_IMAGE,), prob=one.probability, std=one.ends[1])


def _smooth(one: AugmentationConfig, _keys: tuple[str, ...], dimensions: int) -> Any:
    axes = {f"sigma_{axis}": one.ends for axis in "xyz"[:dimensions]}
    return monai.RandGaussianSmoothd((_IMAGE,), prob=one.probability, **axes)


def _contrast(one: AugmentationConfig, _keys: tuple[str, ...], _dimensions: int) -> Any:
    return monai.RandAdjustContrastd((_IMAGE,), prob=one.probability, gamma=one.ends)


def _scale(one: AugmentationConfig, _keys: tuple[str, ...], _dimensions: int) -> Any:
    low, high = one.ends
    return monai.RandScaleIntensityd((_IMAGE,), prob=one.probability, factors=(low - 1, high - 1))


def _shift(one: AugmentationConfig, _keys: tuple[str, ...], _dimensions: int) -> Any:
    return monai.RandShiftIntensityd((_IMAGE,), prob=one.probability, offsets=one.ends)


_TRANSFORMS: dict[str, _Made] = {
    "RandFlip": _flip, "RandRotate": _rotate, "RandZoom": _zoom, "RandGaussianNoise": _noise,
    "RandGaussianSmooth": _smooth, "RandAdjustContrast": _contrast, "RandScaleIntensity": _scale, "RandShiftIntensity": _shift}
