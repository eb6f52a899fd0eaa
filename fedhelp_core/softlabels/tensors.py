"""Named arrays as safetensors bytes, checked against what is expected when they come back. Called by the ledger and the sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

HEADER_ROOM = 4096  # bytes that a safetensors header of two short names never exceeds

Shape = tuple[int | None, ...]
"""Sides; None where any length will do."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """safetensors bytes; the same arrays give the same bytes."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack(body: bytes, expected: Mapping[str, tuple[type[np.generic], Shape]]) -> dict[str, NDArray[Any]]:
    """The arrays in `body`, which must be exactly those `expected` (dtype and shape).

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
            raise ValueError(f"expected {name} as {np.dtype(dtype)} of shape {shape}, got {array.dtype} of shape {array.shape}")
    return arrays


def fits(shape: tuple[int, ...], expected: Shape) -> bool:
    """Whether `shape` is `expected`, None standing for any length."""
    return len(shape) == len(expected) and all(want is None or side == want for side, want in zip(shape, expected, strict=True))
