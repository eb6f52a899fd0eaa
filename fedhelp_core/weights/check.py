"""Whether a weights file may enter the average: the one check of every update, in one pass. Called by the closing of rounds."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.file import CHUNK_BYTES, WeightsFile, require_digest
from fedhelp_core.weights.header import Header, WeightsSpec, quoted, require_spec
from fedhelp_core.weights.segments import common_segments


def check_weights_file(
    path: Path, *, spec: WeightsSpec, max_bytes: int, sha256: str | None, reference: Path | None = None, max_norm: float | None = None,
) -> None:
    """Whether the file can enter the average: header, spec, sha256 (hex), finite values, and ‖file - reference‖₂ ≤ max_norm.

    One pass over the bytes in pieces of 256 KiB, whatever the file's size. `reference` is a checked file of the same spec;
    the norm is over all floating tensors together.

    Raises:
        WeightsError: which fault it has, in one sentence.
    """
    with WeightsFile(path) as file:
        header = file.header(max_bytes)
        require_spec(path, header, spec)
        if max_norm is None or reference is None:
            found = _scan(file, header, None, None)
        else:
            with WeightsFile(reference) as other:
                other_header = other.header()
                require_spec(reference, other_header, spec)
                found = _scan(file, header, other, other_header)
    if sha256 is not None:
        require_digest(path, found.sha256, sha256)
    if found.bad_tensor is not None:
        raise WeightsError(f"{path}: tensor {quoted(found.bad_tensor)} holds a value that is not finite (NaN or infinity, or no truth value)")
    norm = math.sqrt(found.squares)
    if max_norm is not None and not norm <= max_norm:
        raise WeightsError(f"{path}: the update moved by an L2 norm of {norm:.6g}, at most {max_norm:g} (protocol.max_update_norm) expected")


@dataclass(frozen=True)
class _Found:
    sha256: str
    bad_tensor: str | None
    squares: float


def _scan(file: WeightsFile, header: Header, other: WeightsFile | None, other_header: Header | None) -> _Found:
    """sha256, first tensor with a bad value, and Σ(file - other)² in float64, in one pass."""
    digest = hashlib.sha256(file.read(0, header.data_start))
    headers = (header,) if other_header is None else (header, other_header)
    buffer, other_buffer = np.empty(CHUNK_BYTES, np.uint8), np.empty(CHUNK_BYTES, np.uint8)
    bad_tensor, squares = None, 0.0
    for segment in common_segments(headers):
        itemsize, step = segment.dtype.itemsize, CHUNK_BYTES // segment.dtype.itemsize
        for first in range(0, segment.elements, step):
            size = min(step, segment.elements - first) * itemsize
            begin = segment.begins[0] + first * itemsize
            file.read_into(buffer[:size], begin)
            digest.update(buffer[:size].data)
            values = buffer[:size].view(segment.dtype)
            if bad_tensor is None and (bad := _first_bad(values)) is not None:
                bad_tensor = _tensor_at(header, begin + bad * itemsize)
            if other is not None and values.dtype.kind == "f" and bad_tensor is None:
                other.read_into(other_buffer[:size], segment.begins[1] + first * itemsize)
                squares += _squared_distance(values, other_buffer[:size].view(segment.dtype))
    return _Found(digest.hexdigest(), bad_tensor, squares)


def _first_bad(values: NDArray[Any]) -> int | None:
    """Index of the first NaN or infinity, or of the first bool whose byte is neither 0 nor 1."""
    if values.dtype.kind == "f":
        good: NDArray[np.bool_] = np.isfinite(values)
    elif values.dtype.kind == "b":
        good = values.view(np.uint8) <= 1
    else:
        return None
    return None if good.all() else int(good.argmin())


def _squared_distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    difference = np.subtract(left, right, dtype=np.float64)
    with np.errstate(over="ignore"):  # infinity is above every bound, which is the right answer
        return float(np.square(difference, out=difference).sum())


def _tensor_at(header: Header, position: int) -> str:
    """The tensor that holds the file's byte `position`."""
    filled = [t for t in header.tensors if t.end > t.begin]
    return filled[bisect_right([t.begin for t in filled], position) - 1].name
