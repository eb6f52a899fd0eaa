"""A round's updates beside each other: in which direction each moved, and how far its statistics lie from the others'.

Called by the closing of rounds, after each file has passed its own check. Directions are those of at most 8,192 elements, drawn
anew for every round from all updates' sha256, so the cost does not grow with the model and nobody knows them before the round.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.weights.file import WeightsFile
from fedhelp_core.weights.header import Header, WeightsSpec, canonical_header, is_statistic, numpy_dtype

Floats = NDArray[np.float64]
_Run = tuple[int, np.dtype[Any], int]
"""First byte, dtype and elements of what is read at once."""

_SAMPLED = 2**13  # elements: the cosine of so many is within 0.04 of that of all, and all silos' take two milliseconds
_RUN = 2**7  # elements; long enough that reading costs little, short enough that many layers are met
_OPPOSED = -0.1  # cosine of two steps: chance alone stays within 0.03 of zero
_EPSILON = 1e-5  # PyTorch's batch norms add it to every variance that they divide by


@dataclass(frozen=True)
class Compared:
    """One update beside the others of its round."""

    direction: float
    """Cosine between its step and the round's: of each element the median over all silos' steps, each of length one. 0 without one."""
    statistics: Mapping[str, float]
    """Running mean or variance -> L2 distance from the round's median: means in standard deviations, variances by their logarithms."""


def compare(files: Mapping[str, Path], reference: Path, spec: WeightsSpec, sha256: Sequence[str]) -> dict[str, Compared]:
    """Each silo's update (checked files of `spec`) beside the others'. `sha256` (hex): of all of them, in any order.

    Raises:
        WeightsError: a file became shorter since it was checked.
    """
    header = canonical_header(spec)[1]
    with ExitStack() as stack:
        opened = [stack.enter_context(WeightsFile(path)) for path in (reference, *files.values())]
        directions_K = directions(_steps(opened, _sample(header, sha256)))
        statistics = distances(spec.tensors, _reader(opened[1:], header))
    return {
        silo: Compared(float(directions_K[k]), {name: float(distances_K[k]) for name, distances_K in statistics.items()})
        for k, silo in enumerate(files)}


def _sample(header: Header, sha256: Sequence[str]) -> list[_Run]:
    """Of a small model all that is learnt, of a large one as much as is looked at."""
    runs = _learnt(header)
    if len(runs) <= _SAMPLED // _RUN:
        return list(runs)
    generator = np.random.default_rng(list(hashlib.sha256("".join(sorted(sha256)).encode()).digest()))
    return [runs[place] for place in sorted(generator.permutation(len(runs))[:_SAMPLED // _RUN])]


@lru_cache(maxsize=4)  # one header a run
def _learnt(header: Header) -> tuple[_Run, ...]:
    return tuple(
        (tensor.begin + first * dtype.itemsize, dtype, min(_RUN, elements - first))
        for tensor in header.tensors if (dtype := numpy_dtype(tensor.dtype)).kind == "f" and not is_statistic(tensor.name)
        for elements in [math.prod(tensor.shape)] for first in range(0, elements, _RUN))


def _steps(opened: Sequence[WeightsFile], runs: Sequence[_Run]) -> Floats:
    """What each silo added to the reference, the first of `opened`: shape (silos, elements)."""
    values: Floats = np.empty((len(opened), sum(elements for _, _, elements in runs)))
    buffer = np.empty(_RUN * 8, np.uint8)
    for k, file in enumerate(opened):
        at = 0
        for begin, dtype, elements in runs:
            piece = buffer[:elements * dtype.itemsize]
            file.read_into(piece, begin)
            values[k, at:at + elements] = piece.view(dtype)
            at += elements
    values[1:] -= values[0]
    return values[1:]


def directions(steps_KE: Floats) -> Floats:
    """Cosine of each silo's step with the round's, the median of steps of length one; 0 at least for whom most others do not see as opposed.

    Silos' steps may have next to nothing in common. Two of six could then turn the median against a third, but not the others' own steps.
    """
    lengths_K = np.linalg.norm(steps_KE, axis=1)
    units_KE = steps_KE / np.where(lengths_K > 0, lengths_K, 1.0)[:, None]  # who did not move has no direction
    usual_E = _median(units_KE)
    cosines_K: Floats = np.einsum("ke,e->k", units_KE, usual_E) / (np.linalg.norm(usual_E) or 1.0)
    pairs_KK = np.einsum("ke,je->kj", units_KE, units_KE)  # not @: a matrix library would wake a thread a processor for so little
    np.fill_diagonal(pairs_KK, np.nan)
    if len(steps_KE) < 2:
        return cosines_K
    directions_K: Floats = np.where(np.nanmedian(pairs_KK, axis=1) < _OPPOSED, cosines_K, np.maximum(cosines_K, 0))
    return directions_K


def _median(values_KE: Floats) -> Floats:
    """np.median over the silos, three times as fast for few of them."""
    sorted_EK = np.sort(values_KE.T.copy(), axis=1)
    median_E: Floats = (sorted_EK[:, (len(values_KE) - 1) // 2] + sorted_EK[:, len(values_KE) // 2]) / 2
    return median_E


def distances(names: Iterable[str], read: Callable[[str], Floats]) -> dict[str, Floats]:
    """Statistic among `names` -> each silo's distance from the median, in the statistic's own units. `read`: name -> (silos, channels)."""
    known, found = frozenset(names), {}
    for name in sorted(filter(is_statistic, known)):
        values_KC = read(name)
        if name.endswith(".running_var"):
            values_KC = np.log(values_KC + _EPSILON)
        elif (variance := name.replace(".running_mean", ".running_var")) in known:
            values_KC = values_KC / np.sqrt(np.median(read(variance), axis=0) + _EPSILON)
        found[name] = np.linalg.norm(values_KC - np.median(values_KC, axis=0), axis=1)
    return found


def _reader(opened: Sequence[WeightsFile], header: Header) -> Callable[[str], Floats]:
    """Tensor -> what each file has of it."""
    places = {tensor.name: tensor for tensor in header.tensors}

    def read(name: str) -> Floats:
        tensor = places[name]
        return np.stack([_floats(file, tensor.begin, numpy_dtype(tensor.dtype), math.prod(tensor.shape)) for file in opened])

    return read


def _floats(file: WeightsFile, begin: int, dtype: np.dtype[Any], elements: int) -> Floats:
    buffer = np.empty(elements, dtype)
    file.read_into(buffer.view(np.uint8), begin)
    return buffer.astype(np.float64)
