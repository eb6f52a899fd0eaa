"""Intervals of scores and of differences: over patients by a paired bootstrap, over seeds by Student's t.

Pure NumPy. Patients are drawn with replacement within each hospital's test set, all images of a patient together, and the same patients
for all methods and seeds: so a difference of two methods is one of the same patients (Efron and Tibshirani 1993, chapter 16).
The statistic is that of the tables: the mean over seeds of the mean over hospitals. Shapes: N images, C classes, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

DRAWS = 2000
# Two-sided 95 % points of Student's t by degrees of freedom: seeds are few, and SciPy would be imported for these alone.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093, 29: 2.045}


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; NaN where there is none."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return "–" if math.isnan(self.low) else f"{self.low:+.3f} to {self.high:+.3f}"


def drawn_counts(patients: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> Counts:
    """How often each image (B, N) is in each draw of as many patients as there are."""
    names, owner_N = np.unique(np.asarray(patients), return_inverse=True)
    generator = np.random.default_rng(seed)
    chosen = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return chosen[:, owner_N].astype(np.int64)


def auroc_of_draws(labels_N: Counts, probabilities_NC: Floats, counts_BN: Counts) -> Floats:
    """Mean one-versus-rest AUROC (B,) of each draw, ties counting half; classes that a draw lacks are left out of it."""
    areas = []
    for label in range(probabilities_NC.shape[1]):
        positive_N = labels_N == label
        own_P, other_Q = probabilities_NC[positive_N, label], probabilities_NC[~positive_N, label]
        won_PQ = (own_P[:, None] > other_Q).astype(np.float64) + 0.5 * (own_P[:, None] == other_Q)
        own_BP, other_BQ = counts_BN[:, positive_N].astype(np.float64), counts_BN[:, ~positive_N].astype(np.float64)
        pairs_B = own_BP.sum(axis=1) * other_BQ.sum(axis=1)
        areas.append(_divided(((own_BP @ won_PQ) * other_BQ).sum(axis=1), pairs_B))
    return _mean_of_finite(np.stack(areas))


def balanced_accuracy_of_draws(labels_N: Counts, decided_N: Counts, counts_BN: Counts, classes: int) -> Floats:
    """Mean recall (B,) over the classes that are in each draw."""
    right_N = labels_N == decided_N
    recalls = [
        _divided(counts_BN[:, (labels_N == label) & right_N].sum(axis=1), counts_BN[:, labels_N == label].sum(axis=1)) for label in range(classes)]
    return _mean_of_finite(np.stack(recalls))


def mean_of_draws(values_N: Floats, counts_BN: Counts) -> Floats:
    """Mean (B,) of a value that each image has, such as its Dice."""
    known_N = np.isfinite(values_N)
    return _divided(counts_BN[:, known_N] @ values_N[known_N], counts_BN[:, known_N].sum(axis=1))


def percentile_interval(values_B: Floats) -> Interval:
    """From the 2.5th to the 97.5th percentile."""
    finite = values_B[np.isfinite(values_B)]
    return Interval(*np.percentile(finite, [2.5, 97.5]).tolist()) if len(finite) else Interval(math.nan, math.nan)


def seeds_interval(values: Sequence[float]) -> Interval:
    """Mean ± t · standard error of one value a seed."""
    finite = np.asarray([value for value in values if math.isfinite(value)])
    if len(finite) < 2:
        return Interval(math.nan, math.nan)
    t = _T95[max(degrees for degrees in _T95 if degrees <= len(finite) - 1)]  # the next smaller: a wider interval
    half = t * float(finite.std(ddof=1)) / math.sqrt(len(finite))
    return Interval(float(finite.mean()) - half, float(finite.mean()) + half)


def mean_over(draws: Mapping[str, Floats]) -> Floats:
    """Mean over hospitals (B,) of their draws; a hospital that has no value in a draw is left out of it."""
    return _mean_of_finite(np.stack(list(draws.values())))


def _divided(above: npt.NDArray[np.number], below: npt.NDArray[np.number]) -> Floats:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _mean_of_finite(values_KB: Floats) -> Floats:
    known = np.isfinite(values_KB)
    return _divided(np.where(known, values_KB, 0.0).sum(axis=0), known.sum(axis=0))
