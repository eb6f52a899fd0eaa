"""Whose update is unlike the others' of the same round: too far, in the opposite direction, or with statistics of its own. Pure.

While more than half of the silos are honest, a median over silos is a measure that the others cannot move far. What is compared
is a length in a unit that honest silos share: by the square root of batches trained, since a silo's steps point in ever other
directions. Called by the closing of rounds; docs/decisions/0020 has what honest silos do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedhelp_core.weights.check import Checked
from fedhelp_core.weights.comparison import Compared
from fedhelp_core.weights.header import WeightsSpec, is_statistic, quoted

_ONE_TENSOR = 2.0  # times the bound of all together: honest silos' farthest tensors lie 2.3 times beyond their whole
_MOST_BATCHES = 25.0  # medians: who says of itself that it has a thousand times the images is granted five times the length, not thirty
_FEWEST = 3  # silos: of two nobody can say which is the odd one


def far_movers(found: Mapping[str, Checked], spec: WeightsSpec, batches: Mapping[str, int], *, bound: float) -> dict[str, str]:
    """Silo -> why its update is refused: its trained weights moved more than `bound` times as far as its batches let expect."""
    norms = {silo: one.norms for silo, one in found.items()}
    return {
        silo: f"its {part} moved {times:.3g} times as far as is usual among this round's silos for as many batches, at most {most:g} times"
        " (protocol.max_norm_ratio) expected; a damaged or a hostile update, or a silo unlike all others"
        for silo, (part, times, most) in _beyond(
            norms, _sizes(spec, statistics=False), batches, "trained weights", bound, _ONE_TENSOR * bound).items()}


def loud_steppers(found: Mapping[str, Checked], steps: Mapping[str, int], *, bound: float) -> dict[str, str]:
    """Silo -> why its update is refused, where one counts by what it changed in a step: that is more than 5 times `bound` medians.

    Who says of itself that it takes few steps is loud then. Honest steps point in ever other directions, so a twenty-fifth of the median's
    steps make a silo five times as loud: as many as `far_movers` believes in the other direction.
    """
    changes = {silo: one.trainable / steps[silo] for silo, one in found.items()}
    usual, most = float(np.median(list(changes.values()))) if changes else 0.0, bound * math.sqrt(_MOST_BATCHES)
    return {
        silo: f"its trained weights moved {change / usual:.3g} times as far in a step as is usual in this round, at most {most:g} times"
        f" (5 times protocol.max_norm_ratio) expected where updates count by their steps; it has {steps[silo]} a round: its check may have"
        " counted too few images, or aggregation 'mean' fits this federation better"
        for silo, change in changes.items() if usual > 0 and change > most * usual}


def odd_statistics(found: Mapping[str, Compared], spec: WeightsSpec, batches: Mapping[str, int], *, bound: float) -> dict[str, str]:
    """Silo -> why its update is refused: its statistics lie more than `bound` times as far from the round's as is usual.

    All together alone: those of one layer move at once in a silo of many batches, and hardly at all in one of two.
    """
    distances = {silo: one.statistics for silo, one in found.items()}
    return {
        silo: f"its {part} are {times:.3g} times as far from the round's median as is usual for as many batches, at most {most:g} times"
        " (protocol.max_statistics_ratio) expected; a damaged or a hostile update, or a silo unlike all others"
        for silo, (part, times, most) in _beyond(
            distances, _sizes(spec, statistics=True), batches, "batch norms' statistics", bound, math.inf).items()}


def opposed(found: Mapping[str, Compared], *, bound: float) -> dict[str, str]:
    """Silo -> why its update is refused: it undoes what the round has in common."""
    if len(found) < _FEWEST:
        return {}
    return {
        silo: f"its weights moved against the round's median step, with a cosine of {one.direction:.2f}, at least {bound:g}"
        " (protocol.min_direction) expected; a hostile update, or labels that mean something else than the others'"
        for silo, one in found.items() if one.direction < bound}


def _sizes(spec: WeightsSpec, *, statistics: bool) -> dict[str, int]:
    """Elements of each floating tensor that has some, of either group."""
    sizes = {name: math.prod(shape) for name, (dtype, shape) in spec.tensors.items() if dtype.startswith("F")}
    return {name: size for name, size in sizes.items() if size and is_statistic(name) == statistics}


def _beyond(
    lengths: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], batches: Mapping[str, int], what: str, bound: float,
    of_one: float,
) -> dict[str, tuple[str, float, float]]:
    """Silo beyond a bound -> the part that is farthest beyond, how many times as far as is usual, and the bound of that part."""
    if not lengths or not sizes:
        return {}
    names: Sequence[str] = list(sizes)
    batches_K = np.array([batches[silo] for silo in lengths], float)
    unit_K = np.sqrt(np.minimum(batches_K, _MOST_BATCHES * np.median(batches_K)))
    lengths_KT = np.array([[one[name] for name in names] for one in lengths.values()]) / unit_K[:, None]
    sizes_T = np.array(list(sizes.values()), float)
    with np.errstate(all="ignore"):  # infinite lengths compare as they should; what nobody moved has no ratio, and NaN is above no bound
        whole_K = np.sqrt(np.square(lengths_KT).sum(axis=1))
        usual = np.median(whole_K)
        # a tensor of one element may by chance not move in half of the silos: it is granted what elements move on average
        usual_T = np.maximum(np.median(lengths_KT, axis=0), usual * np.sqrt(sizes_T / sizes_T.sum()))
        times_KT = np.nan_to_num(np.column_stack([whole_K / usual, lengths_KT / usual_T]), nan=0.0, posinf=math.inf)
    if not usual > 0:  # most silos do not move at all, and there is nothing to compare with
        return {}
    most_T = np.array([bound, *[of_one] * len(names)])
    labels = [what, *(f"tensor {quoted(name)}" for name in names)]
    return {
        silo: (labels[worst], float(times_T[worst]), float(most_T[worst]))
        for silo, times_T in zip(lengths, times_KT, strict=True) for worst in [int((times_T / most_T).argmax())] if times_T[worst] > most_T[worst]}
