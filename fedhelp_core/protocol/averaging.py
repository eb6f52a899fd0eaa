"""Eq 7 on weights files, in pieces: the arithmetic is algorithm/averaging.py's, so files and arrays agree bit for bit.

Memory is a few pieces, whatever the number of silos and the size of the model; the number of threads changes no bit. Called by
the closing of rounds. Numbers in docs/benchmarks.md come from `python -m benchmarks.averaging`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.algorithm.averaging import MEAN, Kernel, Read, Rule, SortingKernel, check_alike, check_shares, kernel_for
from fedhelp_core.disk import disk_errors, write_all
from fedhelp_core.weights.file import WEIGHTS_FILE, WeightsFile, read_header
from fedhelp_core.weights.header import WeightsSpec, canonical_header
from fedhelp_core.weights.segments import Segment, common_segments

_THREADS = 2  # one reads while the other adds
_WORTH_THREADS = 32 * 2**20  # bytes read; below, starting threads costs more than it saves
_OPEN_AT_ONCE = 256  # files; a process may often hold no more than 1024


def average_files(
    paths: Sequence[Path], shares: Sequence[float], destination: Path, architecture: str, *, rule: Rule = MEAN, threads: int = _THREADS,
) -> str:
    """Eq 7 (or another `rule`) on weights files, each read once, in pieces; writes `destination` and gives its sha256 (hex).

    The files should have passed `check_weights_file` against one spec. The result's bytes are those that `write_weights`
    makes of `average_arrays`, whatever `threads` is.

    Raises:
        WeightsError: a file is damaged, or they differ in names, shapes or dtypes.
        StorageFull: no space left for `destination`.
    """
    check_shares(shares, len(paths))
    headers = [read_header(path) for path in paths]
    specs = [header.spec for header in headers]
    check_alike(specs)
    head, layout = canonical_header(WeightsSpec(architecture, specs[0].tensors))
    kernel = partial(kernel_for, shares, rule)
    pieces = _pieces(common_segments((layout, *headers)), kernel().piece_elements)
    worthwhile = (layout.end - layout.data_start) * len(paths) >= _WORTH_THREADS
    digest = hashlib.sha256(head)
    with disk_errors(destination, WEIGHTS_FILE), _Sources(paths) as sources, destination.open("wb", buffering=0) as output:
        write_all(output, head)
        for mean in _averaged(pieces, sources, kernel, threads if worthwhile else 1):
            digest.update(mean.data)
            write_all(output, mean)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Piece:
    """`elements` of one dtype, from byte begins[k] of file k on."""

    dtype: np.dtype[Any]
    begins: tuple[int, ...]
    elements: int


def _pieces(segments: Iterable[Segment], longest: int) -> Iterator[_Piece]:
    """Segments cut for the kernel; the first of a segment's begins is the destination's, which is written in order anyway."""
    for segment in segments:
        for first in range(0, segment.elements, longest):
            begins = tuple(begin + first * segment.dtype.itemsize for begin in segment.begins[1:])
            yield _Piece(segment.dtype, begins, min(longest, segment.elements - first))


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

    def reader(self, piece: _Piece) -> Read:
        """How the kernel gets at `piece`."""

        def read(k: int, buffer: NDArray[Any]) -> NDArray[Any]:
            if k < len(self._open):
                self._open[k].read_into(buffer, piece.begins[k])
            else:
                with WeightsFile(self._paths[k]) as file:
                    file.read_into(buffer, piece.begins[k])
            return buffer

        return read


def _averaged(
    pieces: Iterator[_Piece], sources: _Sources, kernel: Callable[[], Kernel | SortingKernel], threads: int,
) -> Iterator[NDArray[Any]]:
    """The pieces' averages in their order, a few at a time in flight."""
    kernels = local()

    def work(piece: _Piece) -> NDArray[Any]:
        if not hasattr(kernels, "own"):
            kernels.own = kernel()
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
