"""What a weights file's header says, and what it must say. Pure: bytes and values in, no file opened. Called by the other files here.

The layout is safetensors' own: 8 bytes little-endian header length, a JSON header, then the tensors without gaps. Ours are
sorted by falling item size, dtype and name (so every tensor is aligned). A header from a hospital is hostile until parsed:
nothing in it is used as a size, an offset or a name before it has been compared with what is expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import WeightsError

Weights = dict[str, NDArray[Any]]
"""Tensors by name, as they travel: no torch."""

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20  # some 100,000 tensors; parsing hostile JSON costs about ten times its size in memory

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_FORMAT_KEY, _ARCHITECTURE_KEY = "fedhelp_format", "architecture"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a safetensors dtype name, e.g. 'F32' -> float32."""
    return np.dtype(_DTYPES[name])


def is_statistic(name: str) -> bool:
    """Whether a tensor is counted by a batch norm rather than learnt (PyTorch's own names)."""
    return name.endswith((".running_mean", ".running_var"))


@dataclass(frozen=True)
class WeightsSpec:
    """What a weights file must look like: architecture name, and dtype name ('F32') and shape of every tensor."""

    architecture: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def from_weights(cls, weights: Weights, architecture: str) -> WeightsSpec:
        """The spec that `weights` meet.

        Raises:
            WeightsError: a dtype that cannot travel, e.g. complex.
        """
        return cls(architecture, {name: (_dtype_name(name, array), tuple(array.shape)) for name, array in weights.items()})

    def require_possible(self) -> None:
        """Whether a file can look like this.

        Raises:
            WeightsError: a dtype or a shape that none has.
        """
        for (dtype, shape), name in {kind: name for name, kind in self.tensors.items()}.items():  # many tensors, few kinds
            _tensor_bytes(name, dtype, list(shape))


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes [begin, end) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)  # compared by identity: equal header bytes give the same object
class Header:
    """A weights file's checked header: architecture, and tensors in the order of their bytes, without gaps."""

    architecture: str
    format_version: int | None
    data_start: int
    tensors: tuple[TensorEntry, ...]

    @cached_property
    def spec(self) -> WeightsSpec:
        """What this file holds."""
        return WeightsSpec(self.architecture, {t.name: (t.dtype, t.shape) for t in self.tensors})

    @property
    def end(self) -> int:
        """The file's size in bytes, as the header has it."""
        return self.tensors[-1].end if self.tensors else self.data_start


def canonical_header(spec: WeightsSpec) -> tuple[bytes, Header]:
    """The bytes of the header that our writer gives weights of `spec` (length field included), and what they say.

    Raises:
        WeightsError: the header would be larger than readers accept.
    """
    text = _canonical_text(spec.architecture, tuple(spec.tensors.items()))
    return len(text).to_bytes(8, "little") + text, parse_header(text)


@lru_cache(maxsize=4)
def _canonical_text(architecture: str, tensors: tuple[tuple[str, tuple[str, tuple[int, ...]]], ...]) -> bytes:
    document: dict[str, Any] = {"__metadata__": {_ARCHITECTURE_KEY: architecture, _FORMAT_KEY: str(FORMAT_VERSION)}}
    offset = 0
    for name, (dtype, shape) in sorted(tensors, key=lambda item: (-numpy_dtype(item[1][0]).itemsize, item[1][0], item[0])):
        size = math.prod(shape) * numpy_dtype(dtype).itemsize
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise WeightsError(f"weights: a header of {len(text)} bytes for {len(tensors)} tensors, at most {MAX_HEADER_BYTES} are read; merge tensors")
    return text


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's fields, for `json.loads`.

    Raises:
        ValueError: two have the same name; readers would differ in which one counts.
    """
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"field {quoted(name)} is used twice")
        document[name] = value
    return document


@lru_cache(maxsize=4)  # every file of a run has the same header, and parsing takes longer than hashing a small model
def parse_header(text: bytes) -> Header:
    """What the JSON header says, consistent in itself. WeightsError names the fault, not the file; ValueError: not JSON."""
    document = json.loads(text.decode(), object_pairs_hook=no_duplicates)
    if not isinstance(document, dict):
        raise WeightsError(f"header is not a JSON object, got {type(document).__name__}")
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("header's __metadata__ should map names to texts")
    start = position = 8 + len(text)
    entries = sorted((_entry(name, value, start) for name, value in document.items()), key=lambda t: (t.begin, t.end))
    before = "the header"
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps" if entry.begin < position else "leaves a gap after"
            raise WeightsError(f"tensor {quoted(entry.name)} {fault} {before}: starts at byte {entry.begin}, expected {position}")
        position, before = entry.end, f"tensor {quoted(entry.name)}"
    return Header(metadata.get(_ARCHITECTURE_KEY, ""), _format_version(metadata), start, tuple(entries))


def _format_version(metadata: dict[str, str]) -> int | None:
    text = metadata.get(_FORMAT_KEY)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise WeightsError(f"{_FORMAT_KEY} is {quoted(text)}, a number expected")
    if int(text) > FORMAT_VERSION:
        raise WeightsError(f"format version {text}, this FedHelp reads up to {FORMAT_VERSION}; upgrade it, or downgrade the writer")
    return int(text)


def _entry(name: str, value: Any, start: int) -> TensorEntry:
    where = f"tensor {quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where}: dtype, shape and data_offsets expected in the header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    wanted = _tensor_bytes(name, dtype, shape)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise WeightsError(f"{where}: data_offsets {quoted(offsets)}, a begin and an end expected")
    if offsets[1] - offsets[0] != wanted:
        raise WeightsError(f"{where}: data_offsets span {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {wanted}")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _tensor_bytes(name: str, dtype: Any, shape: Any) -> int:
    """What a tensor takes.

    Raises:
        WeightsError: no such dtype or shape.
    """
    where = f"tensor {quoted(name)}"
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(f"{where}: dtype {quoted(dtype)}, one of {', '.join(_DTYPES)} expected")
    if not _are_counts(shape) or len(shape) > 32:
        raise WeightsError(f"{where}: shape {quoted(shape)}, a list of at most 32 sizes expected")
    itemsize = numpy_dtype(dtype).itemsize
    if math.prod(max(1, side) for side in shape) * itemsize >= 2**60:  # numpy refuses it even where a size of 0 makes it empty
        raise WeightsError(f"{where}: shape {quoted(shape)} is too large")
    size: int = math.prod(shape) * itemsize
    return size


def _are_counts(values: Any) -> bool:
    """A list of integers of at most 48 bits, which no later arithmetic of numpy can overflow unseen."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def require_spec(path: Path, header: Header, spec: WeightsSpec) -> None:
    """Compare the header of the file `path` with what is expected.

    Raises:
        WeightsError: the first difference.
    """
    if header.format_version is None:
        raise WeightsError(f"{path}: no {_FORMAT_KEY} in its metadata; a file written by FedHelp expected")
    if header.architecture != spec.architecture:
        raise WeightsError(f"{path}: weights of architecture {quoted(header.architecture)}, {spec.architecture!r} expected")
    got = header.spec.tensors
    for fault, names in (("missing", spec.tensors.keys() - got.keys()), ("not expected", got.keys() - spec.tensors.keys())):
        if names:
            raise WeightsError(f"{path}: {_listed(names)} {fault}; is the architecture the same at both ends?")
    for name, (dtype, shape) in spec.tensors.items():
        if got[name] != (dtype, tuple(shape)):
            raise WeightsError(f"{path}: tensor {quoted(name)}: {dtype} {list(shape)} expected, got {got[name][0]} {list(got[name][1])}")


def _listed(names: Iterable[str]) -> str:
    """'tensor x', or 'tensors x, y, z and 4 more'."""
    found = sorted(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ("tensor " if len(found) == 1 else "tensors ") + ", ".join(quoted(n) for n in found[:3]) + more


def _dtype_name(tensor: str, array: NDArray[Any]) -> str:
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise WeightsError(f"tensor {quoted(tensor)}: dtype {array.dtype} cannot travel, one of {', '.join(_DTYPES)} expected")
    return name


def quoted(value: Any) -> str:
    """A value from a file as it may stand in a message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"
