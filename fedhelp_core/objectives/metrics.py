"""Scores of classification, in NumPy: balanced accuracy, accuracy, AUROC, calibration and the confusion matrix.

Called by the evaluation in a silo and by simulate. Tests hold them against scikit-learn's; they are written out here because
a silo with one class only, or a class without test images, must give a defined answer instead of a warning.
Shapes: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedhelp_core.algorithm.operating_point import FloatArray, IntArray, OperatingPoint, likeliest

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
    areas = []
    for label in range(probabilities_NC.shape[1]):
        positive_N = labels_N == label
        positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
        if positives and negatives:
            ranks_N = _mean_ranks(probabilities_NC[:, label])
            areas.append((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas)) if areas else float("nan")


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
