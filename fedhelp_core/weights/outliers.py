"""Whose update moved much farther than the others' of the same round. Pure. Called by the closing of rounds.

While more than half of the silos are honest, the median of the silos' norms is a measure that the others cannot move. It is taken
for all trained weights together and for each tensor, so that nobody spends what is usual for a model on one channel of it; and
apart for batch norms' statistics, which have units of their own. docs/decisions/0020 has the norms of honest silos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fedhelp_core.weights.check import Checked, is_statistic
from fedhelp_core.weights.header import WeightsSpec, quoted


def outliers(found: Mapping[str, Checked], spec: WeightsSpec, *, trained: float | None, statistics: float | None) -> dict[str, str]:
    """Silo -> why its update is refused. The ratios are to the round's medians; None: unbounded."""
    sizes = {name: math.prod(shape) for name, (dtype, shape) in spec.tensors.items() if dtype.startswith("F")}
    reasons: dict[str, str] = {}
    for what, field, ratio, counted in (
        ("trained weights", "max_norm_ratio", trained, False), ("batch norms' statistics", "max_statistics_ratio", statistics, True),
    ):
        chosen = {name: size for name, size in sizes.items() if size and is_statistic(name) == counted}
        if ratio is not None and chosen and found:
            for silo, (part, times) in _farthest(found, chosen, what).items():
                if times > ratio:
                    reasons.setdefault(silo, (
                        f"its {part} moved {times:.3g} times as far as is usual among this round's silos, at most {ratio:g} times"
                        f" (protocol.{field}) expected; a damaged or a hostile update, or a silo unlike all others"))
    return reasons


def _farthest(found: Mapping[str, Checked], sizes: Mapping[str, int], what: str) -> dict[str, tuple[str, float]]:
    """Silo -> the part of the chosen tensors that moved farthest beyond what is usual, and how many times as far."""
    names: Sequence[str] = list(sizes)
    norms_KT = np.array([[one.norms[name] for name in names] for one in found.values()])
    sizes_T = np.array(list(sizes.values()), float)
    with np.errstate(all="ignore"):  # infinite norms compare as they should; what nobody moved has no ratio, and NaN is above no bound
        whole_K = np.sqrt(np.square(norms_KT).sum(axis=1))
        usual = np.median(whole_K)
        # a tensor of one element may by chance not move in half of the silos: it is granted what elements move on average
        usual_T = np.maximum(np.median(norms_KT, axis=0), usual * np.sqrt(sizes_T / sizes_T.sum()))
        ratios_KT = np.nan_to_num(np.column_stack([whole_K / usual, norms_KT / usual_T]), nan=0.0, posinf=math.inf)
    if not usual > 0:  # most silos do not move at all, and there is nothing to compare with
        return {}
    labels = [what, *(f"tensor {quoted(name)}" for name in names)]
    return {silo: (labels[ratios_T.argmax()], float(ratios_T.max())) for silo, ratios_T in zip(found, ratios_KT, strict=True)}
