"""Eq 7 of arXiv 2412.19654: w = Σ_k a_k w_k. Arrays in, arrays out. Called by simulate, and by protocol/averaging.py on files.

Floating tensors are summed in float64 in the order given and cast back; integer and bool tensors (batch counters) take the
maximum. Arithmetic on one element does not depend on the piece that it comes in, so piece size changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.header import Weights, WeightsSpec

PIECE_ELEMENTS = 2**16  # float64 sum and float32 piece together 768 KiB: fits a second-level cache of 1 MiB

Read = Callable[[int, NDArray[Any]], NDArray[Any]]
"""(which update, buffer) -> that update's elements of the piece: the buffer filled, or a view that needs no copy."""


def average_arrays(updates: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Eq 7 on arrays: Σ_k shares[k] · updates[k], names, dtypes and shapes kept. Shares are at least 0 and sum to 1.

    Raises:
        WeightsError: the updates differ in names, shapes or dtypes.
    """
    check_shares(shares, len(updates))
    check_alike([WeightsSpec.from_weights(update, "") for update in updates])
    kernel = Kernel(shares)
    return {name: _average_tensor(kernel, [update[name] for update in updates]) for name in updates[0]}


def shares_of(samples: Sequence[int], weighting: str) -> list[float]:
    """a_k of Eq 7: 1/K each (`uniform`), or n_k/Σn (`samples`)."""
    total = sum(samples)
    return [n / total if weighting == "samples" else 1.0 / len(samples) for n in samples]


class Kernel:
    """The arithmetic on one piece, with buffers that live as long as the kernel. One per thread."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = [float(share) for share in shares]
        self._uniform = len(set(self._shares)) == 1
        self._sum = np.empty(PIECE_ELEMENTS)
        self._scaled = np.empty(0 if self._uniform else PIECE_ELEMENTS)
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)  # untouched pages cost nothing: float32 uses half

    def average(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's average as a new array of `elements` ≤ PIECE_ELEMENTS of `dtype`."""
        buffer = self._read[:elements * dtype.itemsize].view(dtype)
        if dtype.kind != "f":
            return self._maximum(read, buffer)
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

    def _maximum(self, read: Read, buffer: NDArray[Any]) -> NDArray[Any]:
        result = np.array(read(0, buffer))
        for k in range(1, len(self._shares)):
            np.maximum(result, read(k, buffer), out=result)
        return result


def _average_tensor(kernel: Kernel, tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    flat = [np.asarray(tensor, order="C").reshape(-1) for tensor in tensors]
    result = np.empty(flat[0].shape, flat[0].dtype)
    for begin in range(0, len(result), PIECE_ELEMENTS):
        values = [array[begin:begin + PIECE_ELEMENTS] for array in flat]
        result[begin:begin + PIECE_ELEMENTS] = kernel.average(lambda k, _, v=values: v[k], result.dtype, len(values[0]))  # type: ignore[misc]
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
