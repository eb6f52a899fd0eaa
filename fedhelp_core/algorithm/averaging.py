"""Eq 7 of arXiv 2412.19654: w = Σ_k a_k w_k. Arrays in, arrays out. Called by simulate, and by protocol/averaging.py on files.

Floating tensors are summed in float64 in the order given and cast back; integer and bool tensors (batch counters) take the
maximum. Two other rules bound what a minority can do: the median of each coordinate, and its mean without the outermost
values (Yin et al. 2018, arXiv 1803.01498). Arithmetic on one element does not depend on the piece that it comes in, so piece
size changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.algorithm import Aggregation, AlgorithmConfig
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.header import Weights, WeightsSpec

PIECE_ELEMENTS = 2**16  # float64 sum and float32 piece together 768 KiB: fits a second-level cache of 1 MiB

_SHORTEST_PIECE = 2**9  # elements: below, the calls cost more than the arithmetic

Read = Callable[[int, NDArray[Any]], NDArray[Any]]
"""(which update, buffer) -> that update's elements of the piece: the buffer filled, or a view that needs no copy."""


@dataclass(frozen=True)
class Rule:
    """How updates become one model. Only `mean` looks at shares."""

    aggregation: Aggregation = "mean"
    trim_share: float = 0.2
    """`trimmed-mean`: share of the updates that is left out at either end of each coordinate; at least one, while any is left."""

    def trimmed(self, updates: int) -> int:
        """How many of so many updates are left out at either end."""
        return min(max(1, math.floor(self.trim_share * updates)), (updates - 1) // 2)


MEAN = Rule()


def rule_of(algorithm: AlgorithmConfig) -> Rule:
    """The rule that a federation has chosen."""
    return Rule(algorithm.aggregation, algorithm.trim_share)


def average_arrays(updates: Sequence[Weights], shares: Sequence[float], rule: Rule = MEAN) -> Weights:
    """Eq 7 on arrays: Σ_k shares[k] · updates[k], names, dtypes and shapes kept. Shares are at least 0 and sum to 1.

    Another `rule` than the mean takes each coordinate's median or trimmed mean instead.

    Raises:
        WeightsError: the updates differ in names, shapes or dtypes.
    """
    check_shares(shares, len(updates))
    check_alike([WeightsSpec.from_weights(update, "") for update in updates])
    kernel = kernel_for(shares, rule)
    return {name: _average_tensor(kernel, [update[name] for update in updates]) for name in updates[0]}


def shares_of(samples: Sequence[int], weighting: str) -> list[float]:
    """a_k of Eq 7: 1/K each (`uniform`), or n_k/Σn (`samples`)."""
    total = sum(samples)
    return [n / total if weighting == "samples" else 1.0 / len(samples) for n in samples]


def kernel_for(shares: Sequence[float], rule: Rule) -> Kernel | SortingKernel:
    """What computes `rule` with these shares."""
    return Kernel(shares) if rule.aggregation == "mean" else SortingKernel(len(shares), rule)


class SortingKernel:
    """Each coordinate's median, or mean without the outermost values, as `Kernel` has Eq 7.

    It must see all updates' values of a coordinate at once, so its pieces are shorter the more updates there are: memory
    stays that of few pieces, whatever the number of silos.
    """

    def __init__(self, updates: int, rule: Rule) -> None:
        self._updates = updates
        self._cut = (updates - 1) // 2 if rule.aggregation == "median" else rule.trimmed(updates)
        self.piece_elements = max(_SHORTEST_PIECE, PIECE_ELEMENTS // updates)
        self._read = np.empty(self.piece_elements * 8, np.uint8)
        self._values = np.empty((updates, self.piece_elements))

    def average(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's average as a new array of `elements` ≤ `piece_elements` of `dtype`."""
        buffer = self._read[:elements * dtype.itemsize].view(dtype)
        if dtype.kind != "f":
            return _maximum(read, buffer, self._updates)
        values = self._values[:, :elements]
        for k in range(self._updates):
            np.copyto(values[k], read(k, buffer))
        values.sort(axis=0)
        kept = values[self._cut:self._updates - self._cut]
        total = kept[0].copy()
        for row in kept[1:]:  # one after the other: a sum over an axis may pair rows as the piece's length has it
            np.add(total, row, out=total)
        return np.asarray(total / len(kept)).astype(dtype)


class Kernel:
    """The arithmetic on one piece, with buffers that live as long as the kernel. One per thread."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.piece_elements = PIECE_ELEMENTS
        self._shares = [float(share) for share in shares]
        self._uniform = len(set(self._shares)) == 1
        self._sum = np.empty(PIECE_ELEMENTS)
        self._scaled = np.empty(0 if self._uniform else PIECE_ELEMENTS)
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)  # untouched pages cost nothing: float32 uses half

    def average(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's average as a new array of `elements` ≤ PIECE_ELEMENTS of `dtype`."""
        buffer = self._read[:elements * dtype.itemsize].view(dtype)
        if dtype.kind != "f":
            return _maximum(read, buffer, len(self._shares))
        total = self._sum[:elements]
        add = self._add_plain if self._uniform else self._add_scaled
        for k in range(len(self._shares)):
            add(total, k, read(k, buffer))
        if self._uniform:
            total *= self._shares[0]
        return total.astype(dtype)

    def _add_plain(self, total: NDArray[Any], k: int, values: NDArray[Any]) -> None:
        """Equal shares are applied once to the sum. Adding float32 to float64 directly is the fastest of the ways measured."""
        if k == 0:
            np.copyto(total, values)
        else:
            np.add(total, values, out=total)

    def _add_scaled(self, total: NDArray[Any], k: int, values: NDArray[Any]) -> None:
        scaled = total if k == 0 else self._scaled[:len(total)]
        np.copyto(scaled, values)  # first to float64: a float32 array times a Python float would be rounded to float32
        np.multiply(scaled, self._shares[k], out=scaled)
        if k > 0:
            np.add(total, scaled, out=total)


def _maximum(read: Read, buffer: NDArray[Any], updates: int) -> NDArray[Any]:
    result = np.array(read(0, buffer))
    for k in range(1, updates):
        np.maximum(result, read(k, buffer), out=result)
    return result


def _average_tensor(kernel: Kernel | SortingKernel, tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    flat = [np.asarray(tensor, order="C").reshape(-1) for tensor in tensors]
    result = np.empty(flat[0].shape, flat[0].dtype)
    step = kernel.piece_elements
    for begin in range(0, len(result), step):
        values = [array[begin:begin + step] for array in flat]
        result[begin:begin + step] = kernel.average(lambda k, _, v=values: v[k], result.dtype, len(values[0]))  # type: ignore[misc]
    return result.reshape(tensors[0].shape)


def check_shares(shares: Sequence[float], updates: int) -> None:
    """Refuse what cannot be a_k of Eq 7.

    Raises:
        ValueError: not one share an update, one below 0, or another sum than 1.
    """
    if updates == 0 or len(shares) != updates:
        raise ValueError(f"averaging: one share per update and at least one update expected, got {updates} updates and {len(shares)} shares")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-9):
        raise ValueError(f"averaging: shares of at least 0 that sum to 1 expected, got a sum of {math.fsum(shares)!r}")


def check_alike(specs: Sequence[WeightsSpec]) -> None:
    """Refuse to average what is of several architectures.

    Raises:
        WeightsError: names, shapes or dtypes differ; the message names the first.
    """
    for number, spec in enumerate(specs[1:], start=2):
        if dict(spec.tensors) != dict(specs[0].tensors):
            odd = sorted(set(spec.tensors.items()) ^ set(specs[0].tensors.items()))[0][0]
            raise WeightsError(f"averaging: update {number} of {len(specs)} differs from the first in tensor {odd!r}; one architecture expected")
