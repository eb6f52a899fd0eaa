"""Scores of classification, in NumPy: balanced accuracy, accuracy, AUROC and the confusion matrix.

Called by the evaluation in a silo and by simulate. Tests hold them against scikit-learn's; they are written out here because
a silo with one class only, or a class without test images, must give a defined answer instead of a warning.
Shapes: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]


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


def classification_scores(labels_N: IntArray, probabilities_NC: FloatArray) -> dict[str, float]:
    """balanced_accuracy, accuracy and auroc, each in [0, 1] or NaN."""
    confusion_CC = confusion_matrix(labels_N, probabilities_NC.argmax(axis=1), probabilities_NC.shape[1])
    return {
        "balanced_accuracy": balanced_accuracy(confusion_CC),
        "accuracy": accuracy(confusion_CC),
        "auroc": auroc(labels_N, probabilities_NC),
    }


def _mean_ranks(values_N: FloatArray) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse_N]
