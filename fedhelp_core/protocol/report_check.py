"""Whether what a silo reports can be true: held against the task, against what its check found, and against its own counts.

Evaluations decide about promotion, so nothing in them is taken on trust that can be computed anew. A confusion matrix gives
accuracy and balanced accuracy, and findings' counts theirs. AUROC, average precision, calibration, Dice and Hausdorff distances
need each image's answer, which stays in the hospital: those are held to their range alone. Called by check, evaluation and the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import PermanentError
from fedhelp_core.objectives.metrics import accuracy, balanced_accuracy, finding_balanced_accuracy, mean_of_defined
from fedhelp_core.protocol.documents import ModelScores, SiloEvaluation, SiloReport
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.registry.tasks import Form

_RECOMPUTED: Mapping[Form, Mapping[str, Callable[[ModelScores], float]]] = {
    "classes": {
        "balanced_accuracy": lambda model: balanced_accuracy(np.asarray(model.confusion, np.int64)),
        "accuracy": lambda model: accuracy(np.asarray(model.confusion, np.int64)),
        "argmax_balanced_accuracy": lambda model: balanced_accuracy(np.asarray(model.argmax_confusion, np.int64)),
    },
    "labels": {"balanced_accuracy": lambda model: mean_of_defined([finding_balanced_accuracy(row) for row in np.asarray(model.confusion, np.int64)])},
    "masks": {},
    "regions": {},
}
_ROUNDING = 1e-9  # two processors may sum in another order


def require_credible_report(report: SiloReport, task: TaskConfig) -> None:
    """Hold a silo's report of itself against the task.

    Raises:
        PermanentError: its counts are not of the task's classes, or not of as many images as it says.
    """
    counts, expected = report.training_class_counts, _counted(report.samples.training, task)
    labelled = report.training_labelled_counts
    if task.form == "labels" and (len(labelled) != len(task.classes) or max(labelled) > expected):
        raise PermanentError(f"training_labelled_counts: {len(task.classes)} counts of at most {expected} expected, got {len(labelled)} of at most"
                             f" {max(labelled, default=0)}; give this silo the hub's version of FedHelp")
    if task.form != "labels" and labelled:
        raise PermanentError(f"training_labelled_counts: none expected of {task.form}, got {len(labelled)}")
    if task.form in ("labels", "regions"):
        if len(counts) != len(task.classes) or max(counts) > expected:
            raise PermanentError(f"training_class_counts: {len(task.classes)} counts of at most {expected} expected, got {len(counts)} of at most"
                                 f" {max(counts, default=0)}")
        if any(with_it > known for with_it, known in zip(counts, labelled or [expected] * len(counts), strict=True)):
            raise PermanentError("training_class_counts: at most as many images with a finding as are labelled for it expected, got more")
        return
    if len(counts) != len(task.classes) or sum(counts) != expected:
        raise PermanentError(
            f"training_class_counts: {len(task.classes)} counts that sum to {expected} expected, got {len(counts)} that sum to {sum(counts)}")


def require_credible_evaluation(evaluation: SiloEvaluation, report: SiloReport, kind: str, task: TaskConfig) -> None:
    """Hold an evaluation against the silo's own check, the kind that it was given, and the task.

    Raises:
        PermanentError: it is of other test images, of another kind, scored by other metrics, or its scores are not those of its
            counts; the message names the field.
    """
    for field, got, expected in (
        ("kind", evaluation.kind, kind), ("test_samples", evaluation.test_samples, report.samples.test),
        ("test_sha256", evaluation.test_sha256, report.test_sha256),
    ):
        if got != expected:
            raise PermanentError(f"{field}: {expected!r} expected, which this silo's check found, got {got!r}")
    possible = {"small": {"proxy"}, "large": {"proxy", "large"}}[kind]
    if evaluation.deployed not in evaluation.models or not evaluation.models.keys() <= possible:
        raise PermanentError(
            f"deployed: one of {', '.join(evaluation.models) or 'no'} models expected, of a {kind} silo's {', '.join(sorted(possible))},"
            f" got {evaluation.deployed!r}")
    for name, model in evaluation.models.items():
        _require_counts(f"models.{name}.confusion", model.confusion, evaluation.test_samples, task)
        _require_operating_point(f"models.{name}", model, evaluation.test_samples, task)
        _require_scores(f"models.{name}.scores", model, task)
        _require_of_each(f"models.{name}.of_each", model, task)
        _require_interval(f"models.{name}", model, task)
    if task.form in ("labels", "regions"):
        _require_same_images([model.confusion for model in evaluation.models.values()])
        return
    matrices = [matrix for model in evaluation.models.values() for matrix in (model.confusion, model.argmax_confusion) if matrix]
    if len({tuple(map(sum, matrix)) for matrix in matrices}) > 1:
        raise PermanentError("models: the same test images of each class expected for every model, got different rows' sums")


def _require_same_images(counts_MK4: Sequence[list[list[int]]]) -> None:
    """Whether each finding is seen in as many test images, whichever model was asked."""
    if len({tuple((row[0] + row[1], row[2] + row[3]) for row in rows) for rows in counts_MK4}) > 1:
        raise PermanentError("models: the same test images with each finding expected for every model, got other counts")


def _require_of_each(where: str, model: ModelScores, task: TaskConfig) -> None:
    """Of several findings, foregrounds or regions a value of each for each metric, whose mean is the score."""
    several = task.form == "labels" or (task.per_pixel and len(task.answered) > 1)
    expected = set(task.metrics) if several else set()
    if model.of_each.keys() != expected:
        raise PermanentError(f"{where}: {', '.join(sorted(expected)) or 'nothing'} expected, got {', '.join(model.of_each)[:80] or 'nothing'}")
    for metric in task.scored_by if several else ():
        values, most = model.of_each[metric.name], _most(metric, task)
        if len(values) != len(task.answered) or any(not math.isnan(value) and not 0 <= value <= most * (1 + _ROUNDING) for value in values):
            raise PermanentError(f"{where}.{metric.name}: {len(task.answered)} numbers from 0 to {most:g} expected, got {str(values)[:80]}")
        mean, score = mean_of_defined(values), model.scores[metric.name]
        if not (math.isclose(mean, score, rel_tol=_ROUNDING, abs_tol=_ROUNDING) or (math.isnan(mean) and math.isnan(score))):
            raise PermanentError(f"{where}.{metric.name}: values with mean {score:.6g} expected, which the model's score is, got {mean:.6g}")


def _require_counts(where: str, confusion: list[list[int]], test_samples: int, task: TaskConfig) -> None:
    """A matrix of all classes, with every test image (or pixel of one) in it."""
    classes = len(task.classes)
    if task.form in ("labels", "regions"):
        most = _counted(test_samples, task)
        if len(confusion) != classes or any(len(row) != 4 or sum(row) > most for row in confusion):
            raise PermanentError(f"{where}: {classes} rows of 4 counts of {test_samples} test images expected, at most {most} in all, got other ones")
        return
    sizes = {len(confusion), *map(len, confusion)}
    if sizes != {classes}:
        raise PermanentError(f"{where}: {classes} rows of {classes} counts expected, got sides of {sorted(sizes)[:5]}")
    expected = _counted(test_samples, task)
    if (total := sum(map(sum, confusion))) != expected:
        raise PermanentError(f"{where}: counts of {test_samples} test images expected, {expected} in all, got {total}")


def _require_operating_point(where: str, model: ModelScores, test_samples: int, task: TaskConfig) -> None:
    """Of classes counts at argmax beside those at the operating point, the same where that is argmax; of masks there is neither."""
    if task.per_pixel and (model.operating_point != "argmax" or model.argmax_confusion):
        raise PermanentError(f"{where}.operating_point: none expected of {task.form}, got {model.operating_point!r}")
    if task.form == "labels" and model.argmax_confusion:
        raise PermanentError(f"{where}.argmax_confusion: none expected of labels, got {len(model.argmax_confusion)} rows")
    if task.form != "classes":
        return
    _require_counts(f"{where}.argmax_confusion", model.argmax_confusion, test_samples, task)
    if model.operating_point == "argmax" and model.argmax_confusion != model.confusion:
        raise PermanentError(f"{where}.argmax_confusion: the same as confusion expected where the operating point is argmax, got other counts")


def _counted(images: int, task: TaskConfig) -> int:
    """What a count of so many images counts: them, or their pixels where a mask answers."""
    return images * (task.image_size**task.dimensions if task.per_pixel else 1)


def _require_scores(where: str, model: ModelScores, task: TaskConfig) -> None:
    """Exactly the task's metrics: what the counts say, or as far as they say nothing a value that there can be."""
    metrics = task.scored_by
    names = [metric.name for metric in metrics]
    if model.scores.keys() != set(names):
        raise PermanentError(f"{where}: {', '.join(names)} expected, got {', '.join(model.scores)[:80] or 'none'}")
    for metric in metrics:
        value, most = model.scores[metric.name], _most(metric, task)
        if not math.isnan(value) and not 0 <= value <= most * (1 + _ROUNDING):
            raise PermanentError(f"{where}.{metric.name}: a number from 0 to {most:g} expected, got {value:g}")
        if metric.name in _RECOMPUTED[task.form]:
            counted = _RECOMPUTED[task.form][metric.name](model)
            if not (math.isclose(value, counted, rel_tol=0, abs_tol=_ROUNDING) or (math.isnan(value) and math.isnan(counted))):
                raise PermanentError(f"{where}.{metric.name}: {counted:.6g} expected, which its own confusion matrix gives, got {value:.6g}")


def _require_interval(where: str, model: ModelScores, task: TaskConfig) -> None:
    """None of classes and findings; of masks two shares in order, or NaN."""
    if model.interval is None:
        return
    low, high = model.interval
    undefined = math.isnan(low) and math.isnan(high)
    if not task.per_pixel or not (undefined or 0 <= low <= high <= 1 + _ROUNDING):
        raise PermanentError(f"{where}.interval: of masks two numbers from 0 to 1 in order, else none, expected, got {low:g} to {high:g}")


def _most(metric: Metric, task: TaskConfig) -> float:
    """The largest value that the metric can have: 1, or the length of an image's diagonal."""
    if math.isfinite(metric.most):
        return metric.most
    dimensions = task.dimensions
    return math.dist((0,) * dimensions, (task.image_size,) * dimensions) * (task.volume.spacing if dimensions == 3 else 1.0)
