"""The data of weights files of one spec as few long runs of bytes, so that a small model of many tensors costs few calls.

Called by the check of one file and by the averaging of many. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fedhelp_core.weights.header import Header, numpy_dtype

Belongs = Callable[[str, np.dtype[Any], tuple[int, ...]], Hashable]
"""Tensor's name, dtype and shape -> the group that it belongs to."""


@dataclass(frozen=True)
class Segment:
    """A run of elements of one dtype, lying contiguously in every file concerned: its first byte in each, and its length."""

    dtype: np.dtype[Any]
    begins: tuple[int, ...]
    elements: int
    group: Hashable = False
    """What `belongs` says of all its tensors."""


@lru_cache(maxsize=8)
def common_segments(headers: tuple[Header, ...], belongs: Belongs | None = None) -> tuple[Segment, ...]:
    """The data of files of one spec as few long segments, in the order of the first file's bytes; none with tensors of several groups.

    97 tensors that lie alike in all files are one segment per dtype, so that a small model costs few calls.
    """
    tables = [{t.name: t.begin for t in header.tensors} for header in headers]
    segments: list[Segment] = []
    for entry in headers[0].tensors:
        dtype = numpy_dtype(entry.dtype)
        begins = tuple(table[entry.name] for table in tables)
        elements = (entry.end - entry.begin) // dtype.itemsize
        group: Hashable = belongs is not None and belongs(entry.name, dtype, entry.shape)
        if segments and (segments[-1].dtype, segments[-1].group) == (dtype, group):
            last = segments[-1]
            if all(b + last.elements * dtype.itemsize == begin for b, begin in zip(last.begins, begins, strict=True)):
                segments[-1] = Segment(dtype, last.begins, last.elements + elements, group)
                continue
        segments.append(Segment(dtype, begins, elements, group))
    return tuple(segments)
