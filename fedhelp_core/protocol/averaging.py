"""The hub's computations on weights files, in pieces: the arithmetic is algorithm/kernels.py's, so files and arrays agree bit for bit.

Memory is a few pieces, whatever the number of silos and the size of the model; the number of threads changes no bit. Called by
the closing of rounds. Numbers in docs/benchmarks.md come from `python -m benchmarks.averaging`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.algorithm.averaging import MEAN, Rule, check_alike, check_shares, kernel_for
from fedhelp_core.algorithm.kernels import Kernel, Read
from fedhelp_core.algorithm.server import MODEL, Computation, Groups, Rows
from fedhelp_core.disk import disk_errors, write_all
from fedhelp_core.weights.file import WEIGHTS_FILE, WeightsFile, read_header
from fedhelp_core.weights.header import WeightsSpec, canonical_header
from fedhelp_core.weights.segments import Segment, common_segments

_THREADS = 2  # one reads while the other adds
_WORTH_THREADS = 32 * 2**20  # bytes read; below, starting threads costs more than it saves
_OPEN_AT_ONCE = 256  # files; a process may often hold no more than 1024
_ALIKE = Groups()
_Of = tuple[Literal["learnt", "counted", "output"], int]
"""Which of a computation's kernels; the number of the output."""


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
    kernel = partial(kernel_for, shares, rule)
    return compute_file(Computation(MODEL, tuple(range(len(paths))), kernel, kernel), paths, destination, architecture, threads=threads)


def compute_file(
    computation: Computation, paths: Sequence[Path], destination: Path, architecture: str, *, groups: Groups = _ALIKE, threads: int = _THREADS,
) -> str:
    """`computation` on weights files, which are its sources in order: each read once, in pieces. Gives the sha256 (hex) of `destination`.

    The result's bytes are those that `write_weights` makes of the same computation on arrays, whatever `threads` is.

    Raises:
        WeightsError: a file is damaged, or they differ in names, shapes or dtypes.
        StorageFull: no space left for `destination`.
    """
    headers = [read_header(path) for path in paths]
    specs = [header.spec for header in headers]
    check_alike(specs)
    head, layout = canonical_header(WeightsSpec(architecture, specs[0].tensors))
    segments = common_segments((layout, *headers), None if computation.learnt is computation.counted and not groups.outputs else groups)
    worthwhile = (layout.end - layout.data_start) * len(paths) >= _WORTH_THREADS
    digest = hashlib.sha256(head)
    with disk_errors(destination, WEIGHTS_FILE), _Sources(paths) as sources, destination.open("wb", buffering=0) as output:
        write_all(output, head)
        for piece in _computed(_pieces(segments, computation), sources, computation, threads if worthwhile else 1):
            digest.update(piece.data)
            write_all(output, piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Piece:
    """`elements` of one dtype, from byte begins[k] of file k on."""

    dtype: np.dtype[Any]
    begins: tuple[int, ...]
    elements: int
    of: _Of


def _kernel_of(computation: Computation, of: _Of) -> Kernel:
    what, output = of
    if what == "output":
        assert computation.of_output is not None
        return computation.of_output(output)
    return computation.learnt() if what == "learnt" else computation.counted()


def _pieces(segments: Iterable[Segment], computation: Computation) -> Iterator[_Piece]:
    """Segments cut for their kernel; the first of a segment's begins is the destination's, which is written in order anyway."""
    longest: dict[_Of, int] = {}
    for segment in segments:
        rows = segment.group if isinstance(segment.group, Rows) else None
        row = rows.elements if rows is not None else segment.elements
        for start in range(0, segment.elements, row):
            of: _Of = ("output", rows.output_of(start)) if rows is not None else ("learnt" if segment.group else "counted", 0)
            if of not in longest:
                longest[of] = _kernel_of(computation, of).piece_elements
            for first in range(start, start + row, longest[of]):
                begins = tuple(begin + first * segment.dtype.itemsize for begin in segment.begins[1:])
                yield _Piece(segment.dtype, begins, min(longest[of], start + row - first), of)


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


def _computed(pieces: Iterator[_Piece], sources: _Sources, computation: Computation, threads: int) -> Iterator[NDArray[Any]]:
    """The pieces' results in their order, a few at a time in flight."""
    kernels = local()

    def work(piece: _Piece) -> NDArray[Any]:
        own: dict[_Of, Kernel] = kernels.__dict__.setdefault("own", {})
        if piece.of not in own:
            own[piece.of] = _kernel_of(computation, piece.of)
        return own[piece.of].compute(sources.reader(piece), piece.dtype, piece.elements)

    if threads == 1:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="average") as pool:
        flight: deque[Future[NDArray[Any]]] = deque(pool.submit(work, piece) for piece in islice(pieces, 2 * threads))
        while flight:
            mean = flight.popleft().result()
            flight.extend(pool.submit(work, piece) for piece in islice(pieces, 1))
            yield mean
