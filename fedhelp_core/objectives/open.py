"""The mathematics of the task that a federation names. The only place that knows which file that is."""

from __future__ import annotations

from functools import lru_cache

from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.registry.tasks import TASKS


@lru_cache(maxsize=8)
def objective_of(config: TaskConfig) -> Objective:
    """The mathematics of the task that `config` names, imported when it is first asked for: classification never waits for MONAI."""
    task = TASKS[config.name]
    if task.answer == "classes":
        from fedhelp_core.objectives.classification import Classification

        return Classification(task, config)
    from fedhelp_core.objectives.segmentation import Segmentation

    return Segmentation(task, config)
