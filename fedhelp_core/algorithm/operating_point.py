"""A hospital's operating point: how the answers of a model become decisions, and probabilities that fit its own patients.

Called by inference.py for simulate and for the silo's evaluation alike, and by evaluation for the model that is registered. Pure NumPy:
values in, values out, the same on every machine. Test images have no part in it.

With z the logarithm of a model's class probabilities, an operating point is a temperature T and an offset o_c for each class:

    decision        argmax_c  z_c / T + o_c + log w_c           for balanced accuracy: as if all classes that occur were equally common
    probabilities   softmax_c z_c / T + o_c + log π_c           π: the hospital's own class frequencies

w_c is the chance that class c occurs in the hospital at all, w of occurrence_of (class_shares.py).

A model trained with plain cross-entropy on classes of frequencies ρ answers with p(y | x) ∝ p(x | y) ρ_y, so o = -log ρ; one trained with
class weights answers as if classes were equally common, so o = 0. Where there are validation images enough, T and o are fitted on them by
bias-corrected temperature scaling (Alexandari et al. 2020, arXiv 1901.06852), drawn towards the values above: few images move them little.
Only p(x | y) is fitted. How common classes are among the validation images does not matter, since that is accounted for.

Of several findings each is such a decision by itself, between not seen and seen, with a temperature and offsets of its own.

Shapes: N images, C classes, K findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhelp_core.algorithm.class_shares import Shares, occurrence_of, prior_of
from fedhelp_core.config.federation import EvaluationConfig, OperatingRule

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

# How far the fit may go from where it starts: standard deviations of normal distributions, in nats.
_OFFSET_DEVIATION = 1.0  # odds within a factor of 7 in 95 of 100 hospitals
_LOG_TEMPERATURE_DEVIATION = 0.5  # networks are too sure by temperatures of 1 to 3 (Guo et al. 2017, arXiv 1706.04599)
_STEPS = 100  # Newton's method takes about six
_LEAST = float(np.finfo(np.float32).tiny)  # a probability that float32 rounded to 0


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """How one hospital decides with one model."""

    rule: OperatingRule
    """What it comes from: of 'validation' with too few images, 'prior-corrected'."""
    temperature: float
    offsets_C: tuple[float, ...]
    """o of the module's docstring, nats."""
    log_prior_C: tuple[float, ...]
    """log π: of the hospital's own class frequencies."""
    log_occurrence_C: tuple[float, ...]
    """log w: of the chance that the hospital sees the class at all."""

    def decided(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int64]:
        """Class numbers (N,) for a model's probabilities."""
        decided: npt.NDArray[np.int64] = (self._logits(probabilities_NC) + np.asarray(self.log_occurrence_C)).argmax(axis=1)
        return decided

    def equally_common(self, probabilities_NC: FloatArray) -> npt.NDArray[np.float64]:
        """Probabilities (N, C) as if all classes that occur in the hospital were equally common: what `decided` takes the largest of."""
        return _softmax(self._logits(probabilities_NC) + np.asarray(self.log_occurrence_C))

    def calibrated(self, probabilities_NC: FloatArray) -> npt.NDArray[np.float64]:
        """Probabilities (N, C) that fit the hospital's patients, of a model's."""
        return _softmax(self._logits(probabilities_NC) + np.asarray(self.log_prior_C))

    def _logits(self, probabilities_NC: FloatArray) -> npt.NDArray[np.float64]:
        logits: npt.NDArray[np.float64] = _log(probabilities_NC) / self.temperature + np.asarray(self.offsets_C)
        return logits


@dataclass(frozen=True, kw_only=True)
class FindingsPoint:
    """How one hospital decides about several findings with one model."""

    of_each: tuple[OperatingPoint, ...]
    """Of each finding, between not seen and seen."""

    @property
    def rule(self) -> OperatingRule:
        """'validation' where one finding or more is decided by validation images; else what all come from."""
        rules = [point.rule for point in self.of_each]
        return "validation" if "validation" in rules else rules[0]

    def decided(self, probabilities_NK: FloatArray) -> npt.NDArray[np.bool_]:
        """Which findings are found (N, K), for a model's probabilities of them."""
        return self._column_by_column(lambda point, both_N2: point.decided(both_N2) == 1, probabilities_NK)

    def equally_common(self, probabilities_NK: FloatArray) -> npt.NDArray[np.float64]:
        """Probabilities (N, K) as if images with each finding were as common as images without: what is above a half is found."""
        return self._column_by_column(lambda point, both_N2: point.equally_common(both_N2)[:, 1], probabilities_NK)

    def calibrated(self, probabilities_NK: FloatArray) -> npt.NDArray[np.float64]:
        """Probabilities (N, K) that fit the hospital's patients, of a model's."""
        return self._column_by_column(lambda point, both_N2: point.calibrated(both_N2)[:, 1], probabilities_NK)

    def _column_by_column(self, what: Callable[[OperatingPoint, FloatArray], npt.NDArray[Any]], probabilities_NK: FloatArray) -> npt.NDArray[Any]:
        return np.stack([what(point, both_of(column_N)) for point, column_N in zip(self.of_each, probabilities_NK.T, strict=True)], axis=1)


Point = OperatingPoint | FindingsPoint


def both_of(probability_N: FloatArray) -> npt.NDArray[np.float64]:
    """Probabilities (N, 2) of not seen and seen, of those that a finding is seen."""
    seen_N = probability_N.astype(np.float64)
    return np.stack([1 - seen_N, seen_N], axis=1)


def likeliest(classes: int) -> OperatingPoint:
    """The model's own word: its likeliest class, its own probabilities."""
    nothing = (0.0,) * classes
    return OperatingPoint(rule="argmax", temperature=1.0, offsets_C=nothing, log_prior_C=nothing, log_occurrence_C=nothing)


def at_half(findings: int) -> FindingsPoint:
    """The same of several findings: those above a half."""
    return FindingsPoint(of_each=(likeliest(2),) * findings)


def prior_corrected(shares_C: Shares | None, *, classes: int, counts_C: Sequence[int] | None = None) -> OperatingPoint:
    """Without an image: offsets take out what the model knows of class frequencies, and the hospital's own go into its probabilities.

    Args:
        shares_C: Class frequencies of what the model was trained on; None: it was trained not to know them (`algorithm.class_weights`).
        classes: C.
        counts_C: The hospital's own training images of each class; None: nobody's, and all classes are taken as equally common.
    """
    offsets_C = np.zeros(classes) if shares_C is None else -np.log(shares_C)
    log_prior_C, log_occurrence_C = (np.zeros(classes),) * 2 if counts_C is None else (np.log(prior_of(counts_C)), np.log(occurrence_of(counts_C)))
    return OperatingPoint(
        rule="prior-corrected", temperature=1.0, offsets_C=tuple(offsets_C.tolist()), log_prior_C=tuple(log_prior_C.tolist()),
        log_occurrence_C=tuple(log_occurrence_C.tolist()))


def fitted(start: OperatingPoint, labels_N: IntArray, probabilities_NC: FloatArray) -> OperatingPoint:
    """`start` with temperature and offsets fitted on validation images: the likeliest ones, with a normal prior around `start`.

    Classes that no validation image shows keep their offset. With images of one class alone there is nothing to fit, and `start` comes back.
    """
    classes = probabilities_NC.shape[1]
    present_C = np.bincount(labels_N, minlength=classes) > 0
    if present_C.sum() < 2:
        return start
    fit = _Fit(start, labels_N, _log(probabilities_NC)[:, present_C], present_C)
    at, value = np.zeros(1 + fit.classes), fit.cost(np.zeros(1 + fit.classes))
    for _ in range(_STEPS):
        step, share = fit.newton_step(at), 1.0
        while (cost := fit.cost(at + share * step)) > value and share > 1e-6:
            share /= 2
        if not cost < value:
            break
        at, value = at + share * step, cost
    offsets = np.array(start.offsets_C)
    offsets[present_C] += at[1:]
    return replace(start, rule="validation", temperature=float(np.exp(at[0])), offsets_C=tuple(offsets.tolist()))


def operating_point(
    wanted: EvaluationConfig, *, shares_C: Shares | None, counts_C: Sequence[int], labels_N: IntArray, probabilities_NC: FloatArray,
) -> OperatingPoint:
    """The hospital's operating point of one model for one decision, as the federation's `evaluation` asks for it.

    Args:
        wanted: The federation's section.
        shares_C: As in `prior_corrected`.
        counts_C: The hospital's own training images of each class.
        labels_N: True classes of its validation images; there may be none.
        probabilities_NC: What the model says of them.
    """
    if wanted.operating_point == "argmax":
        return likeliest(len(counts_C))
    start = prior_corrected(shares_C, classes=len(counts_C), counts_C=counts_C)
    if wanted.operating_point == "prior-corrected" or len(labels_N) < wanted.enough_validation("classes"):
        return start
    return fitted(start, labels_N, probabilities_NC)


class _Fit:
    """Cost of a temperature and offsets: -log likelihood of the labels, and of the normal prior. Variables: log T, changes of offsets."""

    def __init__(self, start: OperatingPoint, labels_N: IntArray, log_NC: npt.NDArray[np.float64], present_C: npt.NDArray[np.bool_]) -> None:
        self.classes = log_NC.shape[1]
        self._true_NC = labels_N[:, None] == np.flatnonzero(present_C)
        self._log_NC = log_NC - log_NC.mean(axis=1, keepdims=True)
        self._start_C = np.array(start.offsets_C)[present_C] + np.log(self._true_NC.mean(axis=0))
        self._precision = np.array([_LOG_TEMPERATURE_DEVIATION**-2] + [_OFFSET_DEVIATION**-2] * self.classes)

    def _logits(self, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        logits: npt.NDArray[np.float64] = np.exp(-at[0]) * self._log_NC + self._start_C + at[1:]
        return logits

    def cost(self, at: npt.NDArray[np.float64]) -> float:
        logits_NC = self._logits(at)
        likelihood = logits_NC[self._true_NC].sum() - _log_sum(logits_NC).sum()
        return float((self._precision * at**2).sum() / 2 - likelihood)

    def newton_step(self, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """With the expected second derivative, which is positive definite wherever it is taken: its direction always goes down."""
        found_NC = _softmax(self._logits(at))
        slopes_NCP = np.concatenate(  # of each logit by each variable
            [(-np.exp(-at[0]) * self._log_NC)[:, :, None],
             np.broadcast_to(np.eye(self.classes), (len(found_NC), self.classes, self.classes))], axis=2)
        mean_NP = np.einsum("nc,ncp->np", found_NC, slopes_NCP)
        gradient = np.einsum("nc,ncp->p", found_NC - self._true_NC, slopes_NCP) + self._precision * at
        curvature = np.einsum("nc,ncp,ncq->pq", found_NC, slopes_NCP, slopes_NCP) - mean_NP.T @ mean_NP + np.diag(self._precision)
        step: npt.NDArray[np.float64] = -np.linalg.solve(curvature, gradient)
        return step


def _log(probabilities_NC: FloatArray) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(probabilities_NC.astype(np.float64), _LEAST))


def _log_sum(logits_NC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    most_N1 = logits_NC.max(axis=1, keepdims=True)
    total: npt.NDArray[np.float64] = most_N1[:, 0] + np.log(np.exp(logits_NC - most_N1).sum(axis=1))
    return total


def _softmax(logits_NC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(logits_NC - _log_sum(logits_NC)[:, None])
