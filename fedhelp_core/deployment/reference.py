"""What a model in use saw and said when it was adopted, in fixed bins, and how far today is from it (population stability index). Pure.

Written into the contract by `joining`, from the hospital's own test images; compared by whatever serves the model. Counts alone: no image.

PSI = sum over bins of (now - then) ln(now / then), of shares. Below 0.1 little has changed, above 0.25 much (Siddiqi 2006); with few images chance
alone gives (bins - 1)(1/now + 1/then) on average, which `by_chance` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Of = Literal["confidence", "decision", "intensity"]
CONFIDENCE_BINS = tuple(edge / 10 for edge in range(1, 11))
"""Upper edges."""
INTENSITY_BINS = tuple(float(16 * edge) for edge in range(1, 17))
_NOTHING = 0.5  # counted in every bin beside what was seen, so that an empty one does not make PSI infinite


@dataclass(frozen=True)
class Seen:
    """One image and its answer, in bins."""

    confidence: int
    decision: int
    intensity: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How many images were in each bin."""

    confidence: tuple[int, ...]
    """Of the answers, 0 to 1: `scorer` says what it is."""
    decision: tuple[int, ...]
    """Of each class, and of nothing found in a mask (0) or something (1), whether or not it was near another."""
    intensity: tuple[int, ...]
    """Of the mean of the pixels, 0 to 255, as the network sees them."""

    @property
    def images(self) -> int:
        """In all."""
        return sum(self.confidence)

    def by_name(self) -> Mapping[Of, tuple[int, ...]]:
        """Bins of each."""
        return {"confidence": self.confidence, "decision": self.decision, "intensity": self.intensity}


def seen(image_CS: NDArray[np.uint8], confidence: float, decision: int) -> Seen:
    """One image and its answer, in bins."""
    return Seen(_bin(confidence, CONFIDENCE_BINS), decision, _bin(intensity_of(image_CS), INTENSITY_BINS))


def intensity_of(image_CS: NDArray[np.uint8]) -> float:
    """Mean of the pixels, 0 to 255."""
    return float(image_CS.mean(dtype=np.float64))


def counted(found: Iterable[Seen], classes: int) -> Reference:
    """All of `found`; `classes`: of the task."""
    rows = [(one.confidence, one.decision, one.intensity) for one in found]
    sizes = (len(CONFIDENCE_BINS), classes, len(INTENSITY_BINS))
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    confidence, decision, intensity = (
        tuple(np.bincount(column, minlength=size).tolist()) for column, size in zip(columns, sizes, strict=True))
    return Reference(confidence=confidence, decision=decision, intensity=intensity)


def psi(now: Sequence[int], then: Sequence[int]) -> float:
    """Population stability index of counts in the same bins."""
    today, before = (np.asarray(counts, np.float64) + _NOTHING for counts in (now, then))
    today, before = today / today.sum(), before / before.sum()
    return float(((today - before) * np.log(today / before)).sum())


def by_chance(now: Sequence[int], then: Sequence[int]) -> float:
    """The index that so few images have on average where nothing has changed."""
    return (len(now) - 1) * (1 / max(1, sum(now)) + 1 / max(1, sum(then)))


def _bin(value: float, upper: Sequence[float]) -> int:
    return min(int(np.searchsorted(upper, value, side="left")), len(upper) - 1)
