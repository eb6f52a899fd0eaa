"""Arithmetic on pieces of tensors: what all rules of the hub are computed with. Arrays in, arrays out; PyTorch is not needed.

A kernel reads the same elements of several sources and gives those of its result. Arithmetic on one element does not depend on the piece
that it comes in, so piece size changes no bit, and files that are read in pieces (protocol/averaging.py) end with the bits of whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

PIECE_ELEMENTS = 2**16  # float64 sum and float32 piece together 768 KiB: fits a second-level cache of 1 MiB

_SHORTEST_PIECE = 2**9  # elements: below, the calls cost more than the arithmetic

Read = Callable[[int, NDArray[Any]], NDArray[Any]]
"""(which update, buffer) -> that update's elements of the piece: the buffer filled, or a view that needs no copy."""
Floats = NDArray[np.float64]


class Kernel(Protocol):
    """Arithmetic on one piece of several sources, with buffers that live as long as the kernel. One per thread."""

    piece_elements: int
    """Longest piece."""

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's result as a new array of `elements` ≤ `piece_elements` of `dtype`."""


class SortingKernel:
    """The mean of each coordinate without the `cut` outermost values at either end: with as many as leave one or two, the median.

    It must see all updates' values of a coordinate at once, so its pieces are shorter the more updates there are: memory
    stays that of few pieces, whatever the number of silos.
    """

    def __init__(self, updates: int, cut: int) -> None:
        self._updates = updates
        self._cut = cut
        self.piece_elements = max(_SHORTEST_PIECE, PIECE_ELEMENTS // updates)
        self._read = np.empty(self.piece_elements * 8, np.uint8)
        self._values = np.empty((updates, self.piece_elements))

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's average."""
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


class SumKernel:
    """Σ_k shares[k] · source k in float64: Eq 7, and with other factors all that is linear in its sources."""

    def __init__(self, shares: Sequence[float]) -> None:
        self.piece_elements = PIECE_ELEMENTS
        self._shares = [float(share) for share in shares]
        self._uniform = len(set(self._shares)) == 1
        self._sum = np.empty(PIECE_ELEMENTS)
        self._scaled = np.empty(0 if self._uniform else PIECE_ELEMENTS)
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)  # untouched pages cost nothing: float32 uses half

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's sum."""
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


class ElementKernel:
    """A formula of each element of floating tensors, in float64: the first so many sources' values go in, the result comes out."""

    def __init__(self, sources: int, formula: Callable[..., Floats]) -> None:
        self.piece_elements = PIECE_ELEMENTS
        self._formula = formula
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)
        self._values = np.empty((sources, PIECE_ELEMENTS))

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's result."""
        buffer, values = self._read[:elements * dtype.itemsize].view(dtype), self._values[:, :elements]
        for k in range(len(values)):
            np.copyto(values[k], read(k, buffer))
        return self._formula(*values).astype(dtype)


class CopyKernel:
    """Source number `source`, as it is."""

    def __init__(self, source: int) -> None:
        self.piece_elements = PIECE_ELEMENTS
        self._source = source
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's copy."""
        return np.array(read(self._source, self._read[:elements * dtype.itemsize].view(dtype)))


class ChosenKernel:
    """Another kernel's arithmetic on some of the sources: those at `places`."""

    def __init__(self, kernel: Kernel, places: Sequence[int]) -> None:
        self.piece_elements = kernel.piece_elements
        self._kernel = kernel
        self._places = tuple(places)

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's result."""
        return self._kernel.compute(lambda k, buffer: read(self._places[k], buffer), dtype, elements)


class ZeroKernel:
    """Zero, whatever its sources hold."""

    def __init__(self) -> None:
        self.piece_elements = PIECE_ELEMENTS

    def compute(self, read: Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
        """The piece's zeros."""
        return np.zeros(elements, dtype)


def compute_tensor(kernel: Kernel, tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What `kernel` makes of whole tensors of one shape and dtype."""
    flat = [np.asarray(tensor, order="C").reshape(-1) for tensor in tensors]
    result = np.empty(flat[0].shape, flat[0].dtype)
    step = kernel.piece_elements
    for begin in range(0, len(result), step):
        values = [array[begin:begin + step] for array in flat]
        result[begin:begin + step] = kernel.compute(lambda k, _, v=values: v[k], result.dtype, len(values[0]))  # type: ignore[misc]
    return result.reshape(tensors[0].shape)


def _maximum(read: Read, buffer: NDArray[Any], updates: int) -> NDArray[Any]:
    result = np.array(read(0, buffer))
    for k in range(1, updates):
        np.maximum(result, read(k, buffer), out=result)
    return result
