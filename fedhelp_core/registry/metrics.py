"""The metric registry: which scores there are of each form of answer. Data only, no PyTorch; objectives/ computes them.

Read by config/task.py, whose `metrics` chooses of them, and by all that shows scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedhelp_core.registry.tasks import Form


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
    of_ranks: bool = False
    """Whether it looks at the order of a model's answers alone, so that no operating point changes it."""

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


def beside(metrics: Iterable[Metric]) -> Metric | None:
    """Which of `metrics` tables show beside the main one, which is first: what no operating point changes; None where each depends on it."""
    return next((metric for metric in list(metrics)[1:] if metric.of_ranks), None)


def metrics_of(form: Form, dimensions: int) -> Mapping[str, Metric]:
    """Name -> metric of answers of `form` to images of `dimensions`, the headline unless a task says otherwise first."""
    return {metric.name: metric for metric in _OF_FORM[form](_UNIT_OF_DISTANCE[dimensions])}


_UNIT_OF_DISTANCE = {2: "pixels", 3: "mm"}


def _of_classes(_unit: str) -> tuple[Metric, ...]:
    return (
        Metric(name="balanced_accuracy", title="balanced accuracy"), Metric(name="auroc", title="AUROC", of_ranks=True),
        Metric(name="accuracy", title="accuracy"), Metric(name="argmax_balanced_accuracy", title="balanced accuracy at argmax"),
        Metric(name="ece", title="ECE", larger_is_better=False), Metric(name="brier", title="Brier score", larger_is_better=False))


def _of_labels(_unit: str) -> tuple[Metric, ...]:
    return (
        Metric(name="auroc", title="mean AUROC", of_ranks=True), Metric(name="average_precision", title="mean average precision", of_ranks=True),
        Metric(name="balanced_accuracy", title="balanced accuracy at 0.5"), Metric(name="brier", title="Brier score", larger_is_better=False))


def _of_masks(unit: str) -> tuple[Metric, ...]:
    return (Metric(name="dice", title="Dice"), Metric(name="hausdorff95", title="Hausdorff 95", larger_is_better=False, unit=unit))


_OF_FORM = {"classes": _of_classes, "labels": _of_labels, "masks": _of_masks, "regions": _of_masks}
