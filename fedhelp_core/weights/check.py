"""Whether a weights file may enter the average: the one check of every update, in one pass. Called by protocol/update_check.py."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.file import CHUNK_BYTES, Stamp, WeightsFile, require_digest
from fedhelp_core.weights.header import Header, TensorEntry, WeightsSpec, is_statistic, quoted
from fedhelp_core.weights.segments import common_segments

_COUNTS_PER_ROUND = 2**31
"""How far an integer, a counter of batches, may grow in a round: no silo trains so many, and a hundred thousand rounds of it stay in 64 bits."""


@dataclass(frozen=True)
class Checked:
    """A file that may enter the average, and how far it lies from its reference: L2 norms, none without one."""

    stamp: Stamp
    """As long as this is the file's, its bytes are those that were checked."""
    norms: Mapping[str, float]
    """By floating tensor."""

    @property
    def trainable(self) -> float:
        """Over what an optimizer moves."""
        return math.hypot(*(norm for name, norm in self.norms.items() if not is_statistic(name)))

    @property
    def statistics(self) -> float:
        """Over running means and variances."""
        return math.hypot(*(norm for name, norm in self.norms.items() if is_statistic(name)))


def check_weights_file(
    path: Path, *, spec: WeightsSpec, max_bytes: int, sha256: str | None, reference: Path | None = None, max_norm: float | None = None,
) -> Checked:
    """Whether the file can enter the average: FedHelp's own bytes for `spec`, sha256 (hex), and values that a model can have.

    Those are finite; variances and counters are not negative. With `reference`, a checked file of the same spec, counters
    have not grown beyond all reason, and ‖file - reference‖₂ over all floating tensors is at most `max_norm`. One pass over
    the bytes in pieces of 256 KiB, whatever the file's size.

    Raises:
        WeightsError: which fault it has, in one sentence.
    """
    with WeightsFile(path) as file:
        stamp = file.stamp
        header = file.header(max_bytes, spec)
        if reference is None:
            found = _Scan(file, header)
        else:
            with WeightsFile(reference) as other:
                found = _Scan(file, header, other, other.header(max_bytes, spec))
        if file.stamp[:4] != stamp[:4]:  # a writer that gives the file its second name changes the last
            raise WeightsError(f"{path}: was written to while it was checked; it must not be after it has its name")
    if sha256 is not None:
        require_digest(path, found.sha256, sha256)
    if found.fault is not None:
        raise WeightsError(f"{path}: tensor {quoted(found.fault[0])} holds {found.fault[1]}")
    norms = {name: math.sqrt(square) for name, square in found.squares.items()}
    norm = math.hypot(*norms.values())
    if max_norm is not None and not norm <= max_norm:
        raise WeightsError(f"{path}: the update moved by an L2 norm of {norm:.6g}, at most {max_norm:g} (protocol.max_update_norm) expected")
    return Checked(stamp, norms)


class _Scan:
    """sha256, the first tensor with a value that none may have, and Σ(file - other)² of each floating tensor, in one pass."""

    def __init__(self, file: WeightsFile, header: Header, other: WeightsFile | None = None, other_header: Header | None = None) -> None:
        self._header = header
        self._filled = [tensor for tensor in header.tensors if tensor.end > tensor.begin]
        self._begins = [tensor.begin for tensor in self._filled]
        self._digest = hashlib.sha256(file.read(0, header.data_start))
        self.fault: tuple[str, str] | None = None
        self.squares: dict[str, float] = {}
        buffer, other_buffer = np.empty(CHUNK_BYTES, np.uint8), np.empty(CHUNK_BYTES, np.uint8)
        for segment in common_segments((header,) if other_header is None else (header, other_header)):
            itemsize, step = segment.dtype.itemsize, CHUNK_BYTES // segment.dtype.itemsize
            for first in range(0, segment.elements, step):
                size = min(step, segment.elements - first) * itemsize
                begin = segment.begins[0] + first * itemsize
                file.read_into(buffer[:size], begin)
                self._digest.update(buffer[:size].data)
                reference = None
                if other is not None and segment.dtype.kind in "fiu" and self.fault is None:
                    other.read_into(other_buffer[:size], segment.begins[1] + first * itemsize)
                    reference = other_buffer[:size].view(segment.dtype)
                if self.fault is None:
                    self._look(buffer[:size].view(segment.dtype), reference, begin)

    @property
    def sha256(self) -> str:
        """Of the whole file, hex."""
        return self._digest.hexdigest()

    def _look(self, values: NDArray[Any], reference: NDArray[Any] | None, begin: int) -> None:
        """At the elements from the file's byte `begin` on; `reference` has the other file's."""
        if (bad := _first_bad(values, reference)) is not None:
            what = {"f": "a value that is not finite (NaN or infinity)", "b": "a value that is no truth value"}.get(
                values.dtype.kind, f"a count of {values[bad]}, which is negative or grew by more than {_COUNTS_PER_ROUND} in a round")
            self.fault = (self._tensor_at(begin + bad * values.dtype.itemsize).name, what)
        elif values.dtype.kind == "f":
            self._look_at_floats(values, reference, begin)

    def _look_at_floats(self, values: NDArray[Any], reference: NDArray[Any] | None, begin: int) -> None:
        """Tensor by tensor: no variance is negative, and how far each moved."""
        itemsize = values.dtype.itemsize
        place = bisect_right(self._begins, begin) - 1
        starts: list[int] = []
        at = 0
        while at < len(values):
            tensor = self._filled[place + len(starts)]
            until = min(len(values), (tensor.end - begin) // itemsize)
            if tensor.name.endswith(".running_var") and values[at:until].min() < 0:
                self.fault = (tensor.name, "a negative variance")
                return
            starts.append(at)
            at = until
        if reference is not None:
            sums = np.add.reduceat(_squared_differences(values, reference), starts)
            for tensor, total in zip(self._filled[place:], sums.tolist(), strict=False):
                self.squares[tensor.name] = self.squares.get(tensor.name, 0.0) + total

    def _tensor_at(self, position: int) -> TensorEntry:
        """The tensor that holds the file's byte `position`."""
        return self._filled[bisect_right(self._begins, position) - 1]


def _first_bad(values: NDArray[Any], reference: NDArray[Any] | None) -> int | None:
    """Index of the first NaN or infinity, bool whose byte is neither 0 nor 1, or count that is negative or grew too far."""
    if values.dtype.kind == "f":
        good: NDArray[np.bool_] = np.isfinite(values)
    elif values.dtype.kind == "b":
        good = values.view(np.uint8) <= 1
    else:
        good = values >= 0
        if reference is not None:
            good &= values.astype(np.float64) <= reference.astype(np.float64) + _COUNTS_PER_ROUND
    return None if good.all() else int(good.argmin())


def _squared_differences(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Subtracted as float32 where that is what they are: twice as fast, and exact where both are near each other."""
    with np.errstate(over="ignore"):  # infinity is above every bound, which is the right answer
        difference: NDArray[np.float64] = np.subtract(left, right, dtype=np.promote_types(left.dtype, np.float32)).astype(np.float64)
        return np.square(difference, out=difference)
