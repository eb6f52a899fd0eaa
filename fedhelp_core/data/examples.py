"""What an example of a task is: a prepared image, and beside it a class number or a prepared mask. `reading` makes them of files.

Every problem is a sentence in the result, so that all of a silo's problems can be listed at once. Shapes: C channels, then the
spatial sides: S, S of a picture, S, S, S of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode


@dataclass(frozen=True)
class Example:
    """One item: its image (C, ...) uint8 and target, or what is wrong with it. The target of a mask task is (1, ...) uint8 of 0 and 1."""

    image_CHW: NDArray[np.uint8] | None = None
    target: int | NDArray[np.uint8] = 0
    problem: str = ""


def image_shape(task: TaskConfig) -> tuple[int, ...]:
    """(C, S, S), or (C, S, S, S) of volumes."""
    return (task.channels, *(task.image_size,) * task.dimensions)


def target_shape(task: TaskConfig) -> tuple[int, ...]:
    """() of a class number; (1, ...) of a mask."""
    return (1, *image_shape(task)[1:]) if task.per_pixel else ()


def preparation(task: TaskConfig) -> str:
    """How this task's files are prepared, in words: part of the name under which prepared images are kept."""
    if task.form == "classes":
        return decode.preprocessing(task.image_size)
    if task.dimensions == 2:
        return f"grey8, shorter side {task.image_size}, bicubic, centre crop; mask nearest"
    return (f"grey8 between the 0.5th and 99.5th percentile, RAS, {task.volume.spacing:g} mm, bilinear, padded or cropped to {task.image_size};"
            " mask nearest")


def mask_problem(mask: NDArray[np.generic], image_sides: tuple[int, ...], path: Path, foreground: str) -> str:
    """What makes `mask`, the array of the file `path`, no mask of an image of `image_sides`; '' if it is one."""
    if mask.shape != image_sides:
        return f"{path}: the mask is {_sides(mask.shape)}, its image {_sides(image_sides)}; both must have the same grid"
    values = np.unique(mask[:: max(1, mask.shape[0] // 4096)]) if mask.dtype.kind == "f" else np.unique(mask)
    if not np.isfinite(values).all():
        return f"{path}: the mask holds NaN or infinity; background 0 and one value for {foreground} expected"
    marks = values[values != 0]
    if not len(marks):
        return f"{path}: the mask is empty, no {foreground} in it; mark it, or remove image and mask from the list"
    if len(marks) == len(values) == 1:
        return f"{path}: the mask has no background, every value is {marks[0]:g}; mark {foreground} alone, or remove image and mask from the list"
    if len(marks) > 1:
        shown = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
        return f"{path}: the mask holds {len(values)} labels ({shown}); two declared in task.classes: background 0 and one value for {foreground}"
    return ""


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
