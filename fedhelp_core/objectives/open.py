"""The mathematics of the task that a federation names. The only place that knows which file that is."""

from __future__ import annotations

from functools import lru_cache

from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.config.task import TaskConfig


@lru_cache(maxsize=8)
def objective_of(task: TaskConfig) -> Objective:
    """The mathematics of the task that a federation is for, imported when it is first asked for: classification never waits for MONAI."""
    if task.form == "classes":
        from fedhelp_core.objectives.classification import Classification

        return Classification(task)
    if task.form == "labels":
        from fedhelp_core.objectives.findings import Findings

        return Findings(task)
    from fedhelp_core.objectives.segmentation import Segmentation

    return Segmentation(task)
