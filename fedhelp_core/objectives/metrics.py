"""Scores of classes and of findings, in NumPy: balanced accuracy, accuracy, AUROC, average precision, calibration and counts.

Called by the evaluation in a silo and by simulate. Tests hold them against scikit-learn's; they are written out here because
a silo with one class only, or a class without test images, must give a defined answer instead of a warning.
Shapes: N images, C classes, K findings, T different probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedhelp_core.algorithm.operating_point import FindingsPoint, FloatArray, IntArray, OperatingPoint, at_half, likeliest
from fedhelp_core.registry.tasks import NOT_LABELLED

_DRAWS = 4000  # so that the ends of an interval move by less than half a point in a hundred from seed to seed
_ENDS = (2.5, 97.5)  # percentiles: 95%
_NORMAL_95 = 1.959964  # of the normal distribution: 95% lie within so many standard deviations
_BINS = 15  # of the calibration error, as in Guo et al. 2017


def confusion_matrix(labels_N: IntArray, predicted_N: IntArray, classes: int) -> npt.NDArray[np.int64]:
    """Counts (C, C): row = true class, column = predicted class."""
    return np.bincount(labels_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def accuracy(confusion_CC: npt.NDArray[np.int64]) -> float:
    """Share of images on the diagonal; NaN without images."""
    total = confusion_CC.sum()
    return float(np.trace(confusion_CC) / total) if total else float("nan")


def balanced_accuracy(confusion_CC: npt.NDArray[np.int64]) -> float:
    """Mean recall over the classes that have test images; NaN without images."""
    per_class = confusion_CC.sum(axis=1)
    present = per_class > 0
    return float(np.mean(np.diag(confusion_CC)[present] / per_class[present])) if present.any() else float("nan")


def auroc(labels_N: IntArray, probabilities_NC: FloatArray) -> float:
    """Mean over classes of the one-versus-rest area under the ROC curve (ties count half).

    Classes without a positive or without a negative test image have no such area and are left out; NaN if none is left.
    """
    areas = [area(labels_N == label, probabilities_NC[:, label]) for label in range(probabilities_NC.shape[1])]
    defined = [found for found in areas if not np.isnan(found)]
    return float(np.mean(defined)) if defined else float("nan")


def area(positive_N: npt.NDArray[np.bool_], probability_N: FloatArray) -> float:
    """Area under one ROC curve (ties count half); NaN without a positive or without a negative image."""
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if not positives or not negatives:
        return float("nan")
    ranks_N = _mean_ranks(probability_N)
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(labels_N: IntArray, probabilities_NC: FloatArray) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far confidence is from accuracy, mean over images in 15 equal bins.

    Confidence is the likeliest class's probability, and bin b holds (b/15, (b+1)/15]. NaN without images.
    """
    if not len(labels_N):
        return float("nan")
    confidence_N = probabilities_NC.max(axis=1)
    off_N = (probabilities_NC.argmax(axis=1) == labels_N) - confidence_N
    bin_N = np.ceil(confidence_N * _BINS).astype(np.int64)
    return float(np.abs(np.bincount(bin_N, weights=off_N)).sum() / len(labels_N))


def brier_score(labels_N: IntArray, probabilities_NC: FloatArray) -> float:
    """Half the squared distance of the probabilities from the truth, mean over images: in [0, 1], of two classes (p - y)²; NaN without images."""
    if not len(labels_N):
        return float("nan")
    return float(((probabilities_NC - np.eye(probabilities_NC.shape[1])[labels_N]) ** 2).sum(axis=1).mean() / 2)


def classification_scores(labels_N: IntArray, probabilities_NC: FloatArray, point: OperatingPoint | None = None) -> dict[str, float]:
    """The scores of registry/metrics.py by name, each in [0, 1] or NaN, of a model's probabilities; `point`: None is argmax.

    Balanced accuracy and accuracy are of the decisions at the operating point, calibration of its probabilities. AUROC and argmax's
    balanced accuracy are of the model's own answers.
    """
    classes = probabilities_NC.shape[1]
    point = point or likeliest(classes)
    confusion_CC = confusion_matrix(labels_N, point.decided(probabilities_NC), classes)
    calibrated_NC = point.calibrated(probabilities_NC)
    return {
        "balanced_accuracy": balanced_accuracy(confusion_CC),
        "auroc": auroc(labels_N, probabilities_NC),
        "accuracy": accuracy(confusion_CC),
        "argmax_balanced_accuracy": balanced_accuracy(confusion_matrix(labels_N, probabilities_NC.argmax(axis=1), classes)),
        "ece": calibration_error(labels_N, calibrated_NC),
        "brier": brier_score(labels_N, calibrated_NC),
    }


def findings_scores(
    labels_NK: IntArray, probabilities_NK: FloatArray, point: FindingsPoint | None = None,
) -> tuple[dict[str, float], dict[str, list[float]], npt.NDArray[np.int64]]:
    """Of several findings: the scores of registry/metrics.py by name; some of them of each finding by itself; and counts (K, 4).

    Each is taken over the images in which the finding is labelled, and the scores are means over the findings that have one. A finding has none
    where it is labelled in no image, or where all say the same of it. `labels_NK`: 0, 1 or NOT_LABELLED. Counts and balanced accuracy are of the
    decisions at `point`, the Brier score of its probabilities; None: the model's own, cut at a half.
    """
    point = point or at_half(labels_NK.shape[1])
    decided_NK, calibrated_NK = point.decided(probabilities_NK), point.calibrated(probabilities_NK)
    of_each: dict[str, list[float]] = {"auroc": [], "average_precision": [], "balanced_accuracy": [], "brier": []}
    counts = np.zeros((labels_NK.shape[1], 4), np.int64)
    for number in range(labels_NK.shape[1]):
        labelled_N = labels_NK[:, number] != NOT_LABELLED
        seen_N, probability_N = labels_NK[labelled_N, number].astype(np.int64), probabilities_NK[labelled_N, number]
        counts[number] = confusion_matrix(seen_N, decided_NK[labelled_N, number].astype(np.int64), 2).ravel()
        of_each["auroc"].append(area(seen_N == 1, probability_N))
        of_each["average_precision"].append(average_precision(seen_N, probability_N))
        of_each["balanced_accuracy"].append(finding_balanced_accuracy(counts[number]))
        of_each["brier"].append(float(((calibrated_NK[labelled_N, number] - seen_N) ** 2).mean()) if len(seen_N) else float("nan"))
    return {name: mean_of_defined(values) for name, values in of_each.items()}, of_each, counts


def finding_balanced_accuracy(counts_4: npt.NDArray[np.int64]) -> float:
    """Of one finding's counts (not seen and not found, found; seen and not found, found); NaN unless some images show it and some do not."""
    matrix = np.asarray(counts_4).reshape(2, 2)
    return balanced_accuracy(matrix) if matrix.sum(axis=1).all() else float("nan")


def average_precision(seen_N: IntArray, probability_N: FloatArray) -> float:
    """Area under precision by recall in steps, equal probabilities together; NaN unless some images show the finding and some do not."""
    positives = int(seen_N.sum())
    if not 0 < positives < len(seen_N):
        return float("nan")
    order_N = np.argsort(-probability_N, kind="stable")
    last_T = np.flatnonzero(np.append(np.diff(probability_N[order_N]) != 0, True))
    found_T = np.cumsum(seen_N[order_N])[last_T]
    precision_T, recall_T = found_T / (last_T + 1), found_T / positives
    return float(np.sum(np.diff(recall_T, prepend=0.0) * precision_T))


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN without any."""
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def balanced_accuracy_interval(confusion_CC: npt.NDArray[np.int64]) -> tuple[float, float]:
    """95% of what the balanced accuracy may be, by the counts of test images (row = true class) alone: recalls drawn from their posteriors.

    Of Jeffreys' prior, so that 5 right of 5 are not certainty (Brown, Cai and DasGupta 2001); the score itself is always in it. NaN without images.
    """
    per_class = confusion_CC.sum(axis=1)
    present = per_class > 0
    if not present.any():
        return float("nan"), float("nan")
    right = np.diag(confusion_CC)[present]
    recalls = np.random.default_rng(0).beta(right + 0.5, per_class[present] - right + 0.5, size=(_DRAWS, int(present.sum())))
    low, high = _ends(recalls.mean(axis=1))
    score = balanced_accuracy(confusion_CC)
    return min(low, score), max(high, score)


def share_interval(right: int, total: int) -> tuple[float, float]:
    """95% of what a share may be by `right` of `total` images: Wilson's interval (1927), never empty and never outside [0, 1]. NaN without images."""
    if not total:
        return float("nan"), float("nan")
    share, squared = right / total, _NORMAL_95**2
    centre = (share + squared / (2 * total)) / (1 + squared / total)
    half = _NORMAL_95 * ((share * (1 - share) + squared / (4 * total)) / total) ** 0.5 / (1 + squared / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def sensitivity_and_specificity(confusion_CC: npt.NDArray[np.int64], label: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of class `label` against all others, as (right, of): its images that were found, and the others' images that were not called it."""
    positive, total = int(confusion_CC[label].sum()), int(confusion_CC.sum())
    found, called = int(confusion_CC[label, label]), int(confusion_CC[:, label].sum())
    return (found, positive), (total - positive - (called - found), total - positive)


def mean_interval(values_N: FloatArray) -> tuple[float, float]:
    """95% of what the mean over images may be, by drawing as many of these with replacement. NaN with fewer than two."""
    if len(values_N) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(0).integers(0, len(values_N), size=(_DRAWS, len(values_N)))
    return _ends(values_N[chosen].mean(axis=1))


def _ends(draws: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(draws, _ENDS)
    return float(low), float(high)


def _mean_ranks(values_N: FloatArray) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse_N]
