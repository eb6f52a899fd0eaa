"""What the numbers in a mask's file mean, and what a model learns of them. Called by `pictures`, `volumes` and `inspection`.

Shapes: ... the mask's sides, K foregrounds or regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig


@dataclass(frozen=True)
class Marks:
    """The foregrounds or regions of masks."""

    names: tuple[str, ...] = ("foreground",)
    values: tuple[tuple[int, ...], ...] = ()
    """Of each, the values in a file that lie inside it; (): of one foreground, whichever value is there."""
    overlap: bool = False
    """Whether they are regions."""

    @classmethod
    def of(cls, task: TaskConfig) -> Marks:
        """Those of `task`."""
        whichever = task.form == "masks" and len(task.answered) == 1 and not task.mask_values
        return cls(task.answered, () if whichever else task.values_inside, task.form == "regions")

    def target(self, labels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """(1, ...) numbers of the foregrounds, 0 where there is none; of regions (K, ...) 0 and 1."""
        if not self.values:
            return np.asarray(labels != 0, np.uint8)[None]
        inside_K = [np.isin(labels, values) for values in self.values]
        if self.overlap:
            return np.stack(inside_K).astype(np.uint8)
        numbers = np.zeros(labels.shape, np.uint8)
        for number, inside in enumerate(inside_K, start=1):
            numbers[inside] = number
        return numbers[None]

    def must_be_somewhere(self) -> bool:
        """Whether a mask without a mark is of no use: of one foreground. Of several, a patient may have none."""
        return not self.values

    def problem(self, mask: NDArray[np.generic], image_sides: tuple[int, ...], path: Path) -> str:
        """What makes `mask`, the array of the file `path`, no mask of an image of `image_sides`; '' if it is one."""
        if mask.shape != image_sides:
            return f"{path}: the mask is {_sides(mask.shape)}, its image {_sides(image_sides)}; both must have the same grid"
        values = np.unique(mask[:: max(1, mask.shape[0] // 4096)]) if mask.dtype.kind == "f" else np.unique(mask)
        expected = "background 0 and one value for " + self.names[0] if not self.values else "background 0 and the values of task.mask_values"
        if not np.isfinite(values).all():
            return f"{path}: the mask holds NaN or infinity; {expected} expected"
        if self.values:
            known = {0, *(value for inside in self.values for value in inside)}
            other = [value for value in values if value not in known]
            return f"{path}: the mask holds {other[0]:g}, none of {', '.join(map(str, sorted(known)))} (task.mask_values)" if other else ""
        marks = values[values != 0]
        if not len(marks):
            return f"{path}: the mask is empty, no {self.names[0]} in it; mark it, or remove image and mask from the list"
        if len(marks) == len(values) == 1:
            return (f"{path}: the mask has no background, every value is {marks[0]:g}; mark {self.names[0]} alone, or remove image and mask from the"
                    " list")
        if len(marks) > 1:
            shown = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
            return f"{path}: the mask holds {len(values)} labels ({shown}); two declared in task.classes: {expected}"
        return ""


ONE_FOREGROUND = Marks()


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
