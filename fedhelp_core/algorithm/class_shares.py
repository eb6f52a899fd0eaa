"""How common a hospital's classes are, for losses and decisions that take skewed classes into account. NumPy; no images, counts alone.

Called by losses.py in training, by operating_point.py and by check, which pools what the hospitals counted.
Shapes: K hospitals, C classes, F findings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Shares = npt.NDArray[np.float64]


def prior_of(counts_C: Sequence[int]) -> Shares:
    """Class frequencies with one more image spread over all classes, so that none is impossible: (n_c + 1/C) / (n + 1)."""
    counts = np.asarray(counts_C, np.float64)
    prior: Shares = (counts + 1 / len(counts)) / (counts.sum() + 1)
    return prior


def occurrence_of(counts_C: Sequence[int]) -> Shares:
    """The chance of each class to occur among as many images again, 1 - (1 - π_c)^n with π of `prior_of`: 1 for what is often seen,
    1 - exp(-1/C) for what never was. Without any image nobody can tell, and all are taken to occur.
    """
    images = sum(counts_C)
    occurrence: Shares = 1 - (1 - prior_of(counts_C)) ** images if images else np.ones(len(counts_C))
    return occurrence


def shares_of_classes(counts_C: Sequence[int]) -> Shares:
    """Class frequencies n_c / n. Of a class without an image nobody can tell: it has the largest share there is, and is never favoured."""
    return _without_gaps(np.asarray(counts_C, np.float64) / max(sum(counts_C), 1))


def pooled_shares(counts_KC: Sequence[Sequence[int]], weights_K: Sequence[float]) -> Shares:
    """What the averaged model has seen: the hospitals' class frequencies, in the shares `weights_K` that their updates have in Eq 7."""
    counts = np.asarray(counts_KC, np.float64)
    return _without_gaps(np.asarray(weights_K) @ (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)))


def pooled_findings(counts_KF2: Sequence[Sequence[Sequence[int]]], weights_K: Sequence[float]) -> Shares:
    """How common each finding (F,) is where it is labelled, mean over the hospitals that label it, which share what `weights_K` gives them.

    `counts_KF2`: training images of each hospital, of those labelled without and with each finding. 0 of a finding that nobody labels.
    """
    counts = np.asarray(counts_KF2, np.float64)
    both_F2 = np.tensordot(np.asarray(weights_K), counts / np.maximum(counts.sum(axis=2, keepdims=True), 1), axes=1)
    shares: Shares = both_F2[:, 1] / np.maximum(both_F2.sum(axis=1), np.finfo(np.float64).tiny)
    return shares


def pooled_of_decisions(counts_KDA: Sequence[Sequence[Sequence[int]]], weights_K: Sequence[float], *, findings: bool) -> Shares:
    """`pooled_findings` of several findings, else `pooled_shares` of the one decision between classes.

    `counts_KDA`: of each hospital and decision, training images by what is true (Objective.counts_of_decisions).
    """
    return pooled_findings(counts_KDA, weights_K) if findings else pooled_shares([counts_C for counts_C, in counts_KDA], weights_K)


def shares_of_finding(share: float) -> Shares:
    """Shares of images without and with a finding that so many have; one that all have, or none, is not favoured."""
    return _without_gaps(np.array([1 - share, share]))


def _without_gaps(shares_C: Shares) -> Shares:
    return np.where(shares_C > 0, shares_C, shares_C.max() or 1.0)  # 1: of a hospital that trains nothing, all classes alike
