"""Eq 7 of arXiv 2412.19654: w = Σ_k a_k w_k. Called by simulate on arrays and by rounds.py on files, with bit-identical results.

Floating tensors are summed in float64 in the order given and cast back; integer and bool tensors (batch counters) take the
maximum. Both entry points feed the same arithmetic piece by piece, and arithmetic on one element does not depend on the
pieces, so neither piece size nor number of threads changes a bit. Memory is a few pieces, whatever the number of silos and
the size of the model. Numbers in docs/benchmarks.md come from `python -m benchmarks.averaging`.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.disk import write_all
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.file import WeightsFile, read_header
from fedhelp_core.weights.header import Weights, WeightsSpec, canonical_header
from fedhelp_core.weights.segments import Segment, common_segments

PIECE_ELEMENTS = 2**16  # float64 sum and float32 piece together 768 KiB: fits a second-level cache of 1 MiB
_THREADS = 2  # one reads while the other adds
_WORTH_THREADS = 32 * 2**20  # bytes read; below, starting threads costs more than it saves
_OPEN_AT_ONCE = 256  # files; a process may often hold no more than 1024

_Read = Callable[[int, NDArray[Any]], NDArray[Any]]
"""(which update, buffer) -> that update's elements of the piece: the buffer filled, or a view that needs no copy."""


def average_arrays(updates: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Eq 7 on arrays: Σ_k shares[k] · updates[k], names, dtypes and shapes kept. Shares are at least 0 and sum to 1.

    Raises:
        WeightsError: the updates differ in names, shapes or dtypes.
    """
    _check_shares(shares, len(updates))
    _check_alike([WeightsSpec.from_weights(update, "") for update in updates])
    kernel = _Kernel(shares)
    return {name: _average_tensor(kernel, [update[name] for update in updates]) for name in updates[0]}


def average_files(paths: Sequence[Path], shares: Sequence[float], destination: Path, architecture: str, *, threads: int = _THREADS) -> str:
    """Eq 7 on weights files, each read once, in pieces; writes `destination` and gives its sha256 (hex).

    The files should have passed `check_weights_file` against one spec. The result's bytes are those that `write_weights`
    makes of `average_arrays`, whatever `threads` is.

    Raises:
        WeightsError: a file is damaged, or they differ in names, shapes or dtypes.
    """
    _check_shares(shares, len(paths))
    headers = [read_header(path) for path in paths]
    specs = [header.spec for header in headers]
    _check_alike(specs)
    head, layout = canonical_header(WeightsSpec(architecture, specs[0].tensors))
    pieces = _pieces(common_segments((layout, *headers)))
    worthwhile = (layout.end - layout.data_start) * len(paths) >= _WORTH_THREADS
    digest = hashlib.sha256(head)
    with _Sources(paths) as sources, destination.open("wb", buffering=0) as output:
        write_all(output, head)
        for mean in _averaged(pieces, sources, shares, threads if worthwhile else 1):
            digest.update(mean.data)
            write_all(output, mean)
    return digest.hexdigest()


def shares_of(samples: Sequence[int], weighting: str) -> list[float]:
    """a_k of Eq 7: 1/K each (`uniform`), or n_k/Σn (`samples`)."""
    total = sum(samples)
    return [n / total if weighting == "samples" else 1.0 / len(samples) for n in samples]


class _Kernel:
    """The arithmetic on one piece, with buffers that live as long as the kernel. One per thread."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = [float(share) for share in shares]
        self._uniform = len(set(self._shares)) == 1
        self._sum = np.empty(PIECE_ELEMENTS)
        self._scaled = np.empty(0 if self._uniform else PIECE_ELEMENTS)
        self._read = np.empty(PIECE_ELEMENTS * 8, np.uint8)  # untouched pages cost nothing: float32 uses half

    def average(self, read: _Read, dtype: np.dtype[Any], elements: int) -> NDArray[Any]:
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

    def _maximum(self, read: _Read, buffer: NDArray[Any]) -> NDArray[Any]:
        result = np.array(read(0, buffer))
        for k in range(1, len(self._shares)):
            np.maximum(result, read(k, buffer), out=result)
        return result


def _average_tensor(kernel: _Kernel, tensors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    flat = [np.asarray(tensor, order="C").reshape(-1) for tensor in tensors]
    result = np.empty(flat[0].shape, flat[0].dtype)
    for begin in range(0, len(result), PIECE_ELEMENTS):
        values = [array[begin:begin + PIECE_ELEMENTS] for array in flat]
        result[begin:begin + PIECE_ELEMENTS] = kernel.average(lambda k, _, v=values: v[k], result.dtype, len(values[0]))  # type: ignore[misc]
    return result.reshape(tensors[0].shape)


@dataclass(frozen=True)
class _Piece:
    """`elements` of one dtype, from byte begins[k] of file k on."""

    dtype: np.dtype[Any]
    begins: tuple[int, ...]
    elements: int


def _pieces(segments: Iterable[Segment]) -> Iterator[_Piece]:
    """Segments cut for the kernel; the first of a segment's begins is the destination's, which is written in order anyway."""
    for segment in segments:
        for first in range(0, segment.elements, PIECE_ELEMENTS):
            begins = tuple(begin + first * segment.dtype.itemsize for begin in segment.begins[1:])
            yield _Piece(segment.dtype, begins, min(PIECE_ELEMENTS, segment.elements - first))


class _Sources:
    """The updates' files, kept open as far as the process may."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._open: list[WeightsFile] = []

    def __enter__(self) -> _Sources:
        with ExitStack() as stack:
            self._open = [stack.enter_context(WeightsFile(path)) for path in self._paths[:_OPEN_AT_ONCE]]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reader(self, piece: _Piece) -> _Read:
        """How the kernel gets at `piece`."""

        def read(k: int, buffer: NDArray[Any]) -> NDArray[Any]:
            if k < len(self._open):
                self._open[k].read_into(buffer, piece.begins[k])
            else:
                with WeightsFile(self._paths[k]) as file:
                    file.read_into(buffer, piece.begins[k])
            return buffer

        return read


def _averaged(pieces: Iterator[_Piece], sources: _Sources, shares: Sequence[float], threads: int) -> Iterator[NDArray[Any]]:
    """The pieces' averages in their order, a few at a time in flight."""
    kernels = local()

    def work(piece: _Piece) -> NDArray[Any]:
        if not hasattr(kernels, "own"):
            kernels.own = _Kernel(shares)
        mean: NDArray[Any] = kernels.own.average(sources.reader(piece), piece.dtype, piece.elements)
        return mean

    if threads == 1:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="average") as pool:
        flight: deque[Future[NDArray[Any]]] = deque(pool.submit(work, piece) for piece in islice(pieces, 2 * threads))
        while flight:
            mean = flight.popleft().result()
            flight.extend(pool.submit(work, piece) for piece in islice(pieces, 1))
            yield mean


def _check_shares(shares: Sequence[float], updates: int) -> None:
    if updates == 0 or len(shares) != updates:
        raise ValueError(f"averaging: one share per update and at least one update expected, got {updates} updates and {len(shares)} shares")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-9):
        raise ValueError(f"averaging: shares of at least 0 that sum to 1 expected, got a sum of {math.fsum(shares)!r}")


def _check_alike(specs: Sequence[WeightsSpec]) -> None:
    for number, spec in enumerate(specs[1:], start=2):
        if dict(spec.tensors) != dict(specs[0].tensors):
            odd = sorted(set(spec.tensors.items()) ^ set(specs[0].tensors.items()))[0][0]
            raise WeightsError(f"averaging: update {number} of {len(specs)} differs from the first in tensor {odd!r}; one architecture expected")
