"""Named arrays as safetensors bytes, checked against what is expected when they come back. Called by the ledger and the sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

HEADER_ROOM = 4096  # bytes that a safetensors header of two short names never exceeds

Shape = tuple[int | None, ...]
"""Sides; None where any length will do."""


_NOTE = "fedhelp"  # one entry, for safetensors writes several in any order


def pack(arrays: Mapping[str, NDArray[Any]], note: Mapping[str, Any] | None = None) -> bytes:
    """safetensors bytes; the same arrays and the same note (JSON, below 2 KiB) give the same bytes."""
    metadata = None if note is None else {_NOTE: json.dumps(note, sort_keys=True)}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)


def hash_rows(hashes: Sequence[str]) -> NDArray[np.uint8]:
    """sha256s (hex) as rows of bytes, (n, 32)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), 32)


def note_of(body: bytes) -> dict[str, Any]:
    """The note that `pack` put beside the arrays of `body`, which `unpack` has found to be safetensors.

    Raises:
        ValueError: there is none.
    """
    try:
        note = json.loads(json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"][_NOTE])
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError("expected a note beside the arrays") from e
    if not isinstance(note, dict):
        raise ValueError(f"expected a mapping as note, got {type(note).__name__}")
    return note


def unpack(body: bytes, expected: Mapping[str, tuple[str, Shape]]) -> dict[str, NDArray[Any]]:
    """The arrays in `body`, which must be exactly those `expected` (dtype's name and shape).

    Raises:
        ValueError: one sentence: not safetensors, or other names, dtypes or shapes.
    """
    try:
        arrays: dict[str, NDArray[Any]] = load(body)
    except (SafetensorError, KeyError, ValueError, TypeError) as e:  # KeyError: a dtype that numpy does not have
        raise ValueError(f"is not a safetensors file ({e})") from e
    if set(arrays) != set(expected):
        raise ValueError(f"expected the arrays {sorted(expected)}, got {sorted(arrays)[:8]}")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or not fits(array.shape, shape):
            raise ValueError(f"expected {name} as {dtype} of shape {shape}, got {array.dtype} of shape {array.shape}")
    return arrays


def fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Whether `shape` is `expected`, None standing for any length."""
    return len(shape) == len(expected) and all(want is None or side == want for side, want in zip(shape, expected, strict=True))
