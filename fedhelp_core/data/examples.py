"""What an example of a task is: a prepared image, and beside it a class number, findings or a prepared mask. `reading` makes them of files.

Every problem is a sentence in the result, so that all of a silo's problems can be listed at once. Shapes: C channels, then the
spatial sides: S, S of a picture, S, S, S of a volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode
from fedhelp_core.data.items import Item


@dataclass(frozen=True)
class Example:
    """One item: its image (C, ...) uint8 and target, or what is wrong with it.

    The target is a class number; of K findings (K,) uint8 of 0, 1 and NOT_LABELLED; of masks (1, ...) uint8 of class
    numbers, background 0; of regions (K, ...) uint8 of 0 and 1.
    """

    image_CHW: NDArray[np.uint8] | None = None
    target: int | NDArray[np.uint8] = 0
    problem: str = ""


def image_shape(task: TaskConfig) -> tuple[int, ...]:
    """(C, S, S), or (C, S, S, S) of volumes."""
    return (task.channels, *(task.image_size,) * task.dimensions)


def target_shape(task: TaskConfig) -> tuple[int, ...]:
    """() of a class number; (K,) of findings; (1, ...) of a mask of classes; (K, ...) of regions."""
    if task.form == "labels":
        return (len(task.classes),)
    if not task.per_pixel:
        return ()
    return (len(task.classes) if task.form == "regions" else 1, *image_shape(task)[1:])


def preparation(task: TaskConfig) -> str:
    """How this task's files are prepared, in words: part of the name under which prepared images are kept."""
    if not task.per_pixel and task.dimensions == 2 and task.channels == 3:
        return decode.preprocessing(task.image_size)
    if task.dimensions == 2:
        colours = "RGB8" if task.channels == 3 else "grey8"
        return f"{colours}, shorter side {task.image_size}, bicubic, centre crop; mask nearest{_marks_in_words(task)}"
    sequences = f"{task.channels} sequences, each " if task.channels > 1 else ""
    return (f"{sequences}grey8 {_intensity_in_words(task)}, RAS, {task.volume.spacing:g} mm, bilinear, padded or cropped to"
            f" {task.image_size}; mask nearest{_marks_in_words(task)}")


def _intensity_in_words(task: TaskConfig) -> str:
    if not task.intensity:
        return "between the 0.5th and 99.5th percentile"
    return " / ".join(f"{one.how} {one.ends[0]:g} to {one.ends[1]:g}" for one in task.intensity)


def _marks_in_words(task: TaskConfig) -> str:
    """What values of a mask's file mean, where they are more than one foreground."""
    if not task.per_pixel or (task.form == "masks" and len(task.answered) == 1 and not task.mask_values):
        return ""
    return ", " + ", ".join(f"{name} {'+'.join(map(str, values))}" for name, values in zip(task.answered, task.values_inside, strict=True))


def target_of(item: Item) -> int | NDArray[np.uint8]:
    """What a list says of an image: its class number, or its findings."""
    return np.array(item.findings, np.uint8) if item.findings else item.label


def label_in_words(item: Item, task: TaskConfig) -> str:
    """The same for people: the class, or the findings that are seen."""
    if task.form == "labels":
        seen = [name for name, found in zip(task.classes, item.findings, strict=False) if found == 1]
        return ", ".join(seen) or "no finding"
    return task.classes[item.label] if item.label < len(task.classes) else f"label {item.label}"
