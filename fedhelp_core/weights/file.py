"""Weights in safetensors files: write, read, check. Called by silos, rounds.py and averaging; numpy only, never pickle.

The writer is our own because the same weights must give the same bytes, so that a file's sha256 names its content. The
layout is the format's own: 8 bytes little-endian header length, a JSON header, then the tensors without gaps, sorted by
falling item size, dtype and name (so every tensor is aligned). A file from a hospital is hostile until checked: nothing
in it is used as a size, an offset or a name before it has been compared with what is expected.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.errors import AccessDenied, NotFound, StorageFull, WeightsError

Weights = dict[str, NDArray[Any]]
"""Tensors by name, as they travel: no torch."""

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20  # some 100,000 tensors; parsing hostile JSON costs about ten times its size in memory
CHUNK_BYTES = 2**18  # per read: stays in the second-level cache between reading, hashing and arithmetic

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dlit]|c[\w.]+\n")  # how protocols 2-5 and 0 begin
_FORMAT_KEY, _ARCHITECTURE_KEY = "fedhelp_format", "architecture"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a safetensors dtype name, e.g. 'F32' -> float32."""
    return np.dtype(_DTYPES[name])


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

    @classmethod
    def from_json(cls, document: Any) -> WeightsSpec:
        """The spec that `to_json` wrote.

        Raises:
            WeightsError: `document` is something else.
        """
        try:
            tensors = {str(n): (str(dtype), tuple(int(side) for side in shape)) for n, (dtype, shape) in document["tensors"].items()}
            return cls(str(document["architecture"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise WeightsError(f"spec of the weights: expected architecture and tensors with dtype and shape, got {str(document)[:80]!r}") from e

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"architecture": self.architecture, "tensors": {n: [dtype, list(shape)] for n, (dtype, shape) in self.tensors.items()}}


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
    return len(text).to_bytes(8, "little") + text, _parse_header(text)


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


def serialize_weights(weights: Weights, architecture: str) -> bytes:
    """The file's bytes; same weights and architecture, same bytes.

    Raises:
        WeightsError: a dtype that cannot travel.
    """
    return b"".join(_pieces(weights, architecture))


def fingerprint(weights: Weights, architecture: str = "") -> str:
    """sha256 (hex) of `serialize_weights`, which is the sha256 of the file."""
    digest = hashlib.sha256()
    for piece in _pieces(weights, architecture):
        digest.update(piece)
    return digest.hexdigest()


def write_weights(path: Path, weights: Weights, architecture: str) -> str:
    """Write the file and give its sha256 (hex). Not atomic: write under a scratch name and rename, or hand it to a store.

    Raises:
        WeightsError: a dtype that cannot travel.
        StorageFull: no space left.
    """
    digest = hashlib.sha256()
    try:
        with path.open("wb", buffering=0) as handle:
            for piece in _pieces(weights, architecture):
                digest.update(piece)
                write_all(handle, piece)
    except OSError as e:
        raise _os_error(path, e) from e
    return digest.hexdigest()


def read_header(path: Path, *, max_bytes: int | None = None) -> Header:
    """The file's header, checked in itself: offsets within the file, no gap, no overlap, sizes that fit dtypes and shapes.

    Raises:
        WeightsError: which fault it has.
    """
    with WeightsFile(path) as file:
        return _read_header(file, max_bytes)


def read_weights(path: Path, *, expected: WeightsSpec | None, max_bytes: int, sha256: str | None) -> Weights:
    """The file's tensors as arrays that own aligned memory, checked in the one pass that reads them (not for finiteness).

    Raises:
        WeightsError: larger than `max_bytes`, damaged, not as `expected`, or its sha256 (hex) is another.
    """
    with WeightsFile(path) as file:
        header = _read_header(file, max_bytes)
        if expected is not None:
            _check_header(path, header, expected)
        digest = hashlib.sha256(file.read(0, header.data_start)) if sha256 is not None else None
        weights: Weights = {}
        for entry in header.tensors:
            array: NDArray[Any] = np.empty(entry.shape, numpy_dtype(entry.dtype))
            body = array.reshape(-1).view(np.uint8)
            for begin in range(0, len(body), CHUNK_BYTES):
                piece = body[begin:begin + CHUNK_BYTES]
                file.read_into(piece, entry.begin + begin)
                if digest is not None:
                    digest.update(piece.data)
            weights[entry.name] = array
    if digest is not None:
        _check_digest(path, digest.hexdigest(), str(sha256))
    return weights


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
        header = _read_header(file, max_bytes)
        _check_header(path, header, spec)
        if max_norm is None or reference is None:
            found = _scan(file, header, None, None)
        else:
            with WeightsFile(reference) as other:
                other_header = _read_header(other, None)
                _check_header(reference, other_header, spec)
                found = _scan(file, header, other, other_header)
    if sha256 is not None:
        _check_digest(path, found.sha256, sha256)
    if found.bad_tensor is not None:
        raise WeightsError(f"{path}: tensor {_quoted(found.bad_tensor)} holds a value that is not finite (NaN or infinity, or no truth value)")
    norm = math.sqrt(found.squares)
    if max_norm is not None and not norm <= max_norm:
        raise WeightsError(f"{path}: the update moved by an L2 norm of {norm:.6g}, at most {max_norm:g} (protocol.max_update_norm) expected")


@dataclass(frozen=True)
class Segment:
    """A run of elements of one dtype, lying contiguously in every file concerned: its first byte in each, and its length."""

    dtype: np.dtype[Any]
    begins: tuple[int, ...]
    elements: int


@lru_cache(maxsize=8)
def common_segments(headers: tuple[Header, ...]) -> tuple[Segment, ...]:
    """The data of files of one spec as few long segments, in the order of the first file's bytes.

    97 tensors that lie alike in all files are one segment per dtype, so that a small model costs few calls.
    """
    tables = [{t.name: t.begin for t in header.tensors} for header in headers]
    segments: list[Segment] = []
    for entry in headers[0].tensors:
        dtype = numpy_dtype(entry.dtype)
        begins = tuple(table[entry.name] for table in tables)
        elements = (entry.end - entry.begin) // dtype.itemsize
        if segments and segments[-1].dtype == dtype:
            last = segments[-1]
            if all(b + last.elements * dtype.itemsize == begin for b, begin in zip(last.begins, begins, strict=True)):
                segments[-1] = Segment(dtype, last.begins, last.elements + elements)
                continue
        segments.append(Segment(dtype, begins, elements))
    return tuple(segments)


class WeightsFile:
    """A weights file open for reading at given places, from any thread; short reads are faults with a name.

    Raises:
        NotFound: no such file.
        AccessDenied: it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise _os_error(path, e) from e
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        body = bytearray(length)
        self.read_into(np.frombuffer(body, np.uint8), offset)
        return bytes(body)

    def read_into(self, buffer: NDArray[Any], offset: int) -> None:
        """Fill the contiguous `buffer` from `offset` on.

        Raises:
            WeightsError: the file ends before.
        """
        view = buffer.data.cast("B") if buffer.size else memoryview(b"")
        while view:
            got = os.preadv(self._descriptor, [view], offset)
            if got == 0:
                raise WeightsError(f"{self.path}: the file became shorter while it was read; it must not be written to after it has its name")
            view, offset = view[got:], offset + got


def write_all(handle: io.FileIO, piece: Any) -> None:
    """Write a whole buffer to an unbuffered file, which may take it in parts."""
    view = memoryview(piece).cast("B")
    while view:
        view = view[handle.write(view):]


def _os_error(path: Path, e: OSError) -> Exception:
    if isinstance(e, FileNotFoundError):
        return NotFound(f"{path}: no such weights file")
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path}: no space left for the weights file; free some, then run again")
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(f"{path}: the weights file refuses access ({e.strerror}); check its permissions")
    return WeightsError(f"{path}: the weights file cannot be read or written ({e.strerror})")


def _pieces(weights: Weights, architecture: str) -> Iterator[Any]:
    """The file as buffers: header, then every tensor's bytes, little-endian and C-contiguous."""
    head, header = canonical_header(WeightsSpec.from_weights(weights, architecture))
    yield head
    for entry in header.tensors:
        if entry.end > entry.begin:
            yield np.asarray(weights[entry.name], dtype=numpy_dtype(entry.dtype), order="C").reshape(-1).view(np.uint8)


def _dtype_name(tensor: str, array: NDArray[Any]) -> str:
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise WeightsError(f"tensor {_quoted(tensor)}: dtype {array.dtype} cannot travel, one of {', '.join(_DTYPES)} expected")
    return name


# ---- header: every byte is hostile ---------------------------------------------------------------------------------

def _read_header(file: WeightsFile, max_bytes: int | None) -> Header:
    path, size = file.path, file.size
    if max_bytes is not None and size > max_bytes:
        raise WeightsError(f"{path}: {size} bytes, at most {max_bytes} (protocol.max_update_bytes) expected")
    if size < 8:
        raise WeightsError(f"{path}: truncated: {size} bytes, not even a header length")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(_other_format(file) or f"{path}: header too large: {length} bytes announced, at most {MAX_HEADER_BYTES} expected")
    if 8 + length > size:
        raise WeightsError(_other_format(file) or f"{path}: truncated: a header of {length} bytes announced, but the file has {size} in all")
    try:
        header = _parse_header(file.read(8, length))
    except (ValueError, RecursionError) as e:
        raise WeightsError(_other_format(file) or f"{path}: header is not JSON ({str(e)[:100]}); a safetensors file expected") from e
    except WeightsError as e:
        raise WeightsError(f"{path}: {e}") from e
    if header.end > size:
        raise WeightsError(f"{path}: truncated: {size} bytes, the header announces {header.end}")
    if header.end < size:
        raise WeightsError(f"{path}: {size - header.end} bytes follow the last tensor, none expected")
    return header


def _other_format(file: WeightsFile) -> str | None:
    """A sentence if the file is of another known format; asked only once it is known not to be safetensors."""
    start = file.read(0, min(64, file.size))
    if start.startswith(b"PK\x03\x04"):
        return f"{file.path}: is a zip archive (a torch checkpoint, most likely), safetensors expected: it may hold pickled code and is never opened"
    if _PICKLE.match(start):
        return f"{file.path}: is a pickle (an old torch checkpoint, most likely), safetensors expected: pickles run code and are never opened"
    if start.startswith((b"\x93NUMPY", b"\x89HDF")):
        return f"{file.path}: is a NumPy or HDF5 file, safetensors expected"
    return None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is used twice")
    return document


@lru_cache(maxsize=4)  # every file of a run has the same header, and parsing takes longer than hashing a small model
def _parse_header(text: bytes) -> Header:
    """What the JSON header says, consistent in itself. WeightsError names the fault, not the file; ValueError: not JSON."""
    document = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
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
            raise WeightsError(f"tensor {_quoted(entry.name)} {fault} {before}: starts at byte {entry.begin}, expected {position}")
        position, before = entry.end, f"tensor {_quoted(entry.name)}"
    return Header(metadata.get(_ARCHITECTURE_KEY, ""), _format_version(metadata), start, tuple(entries))


def _format_version(metadata: dict[str, str]) -> int | None:
    text = metadata.get(_FORMAT_KEY)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise WeightsError(f"{_FORMAT_KEY} is {_quoted(text)}, a number expected")
    if int(text) > FORMAT_VERSION:
        raise WeightsError(f"format version {text}, this FedHelp reads up to {FORMAT_VERSION}; upgrade it, or downgrade the writer")
    return int(text)


def _entry(name: str, value: Any, start: int) -> TensorEntry:
    where = f"tensor {_quoted(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where}: dtype, shape and data_offsets expected in the header")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(f"{where}: dtype {_quoted(dtype)}, one of {', '.join(_DTYPES)} expected")
    if not _are_counts(shape) or len(shape) > 32:
        raise WeightsError(f"{where}: shape {_quoted(shape)}, a list of at most 32 sizes expected")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise WeightsError(f"{where}: data_offsets {_quoted(offsets)}, a begin and an end expected")
    itemsize = numpy_dtype(dtype).itemsize
    if math.prod(max(1, side) for side in shape) * itemsize >= 2**60:  # numpy refuses it even where a size of 0 makes it empty
        raise WeightsError(f"{where}: shape {_quoted(shape)} is too large")
    wanted = math.prod(shape) * itemsize
    if offsets[1] - offsets[0] != wanted:
        raise WeightsError(f"{where}: data_offsets span {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {wanted}")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_counts(values: Any) -> bool:
    """A list of integers of at most 48 bits, which no later arithmetic of numpy can overflow unseen."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)


def _quoted(value: Any) -> str:
    """A value from a file as it may stand in a message: escaped and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "...'"


def _check_header(path: Path, header: Header, spec: WeightsSpec) -> None:
    if header.format_version is None:
        raise WeightsError(f"{path}: no {_FORMAT_KEY} in its metadata; a file written by FedHelp expected")
    if header.architecture != spec.architecture:
        raise WeightsError(f"{path}: weights of architecture {_quoted(header.architecture)}, {spec.architecture!r} expected")
    got = header.spec.tensors
    for fault, names in (("missing", spec.tensors.keys() - got.keys()), ("not expected", got.keys() - spec.tensors.keys())):
        if names:
            raise WeightsError(f"{path}: {_listed(names)} {fault}; is the architecture the same at both ends?")
    for name, (dtype, shape) in spec.tensors.items():
        if got[name] != (dtype, tuple(shape)):
            raise WeightsError(f"{path}: tensor {_quoted(name)}: {dtype} {list(shape)} expected, got {got[name][0]} {list(got[name][1])}")


def _listed(names: Iterable[str]) -> str:
    """'tensor x', or 'tensors x, y, z and 4 more'."""
    found = sorted(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ("tensor " if len(found) == 1 else "tensors ") + ", ".join(_quoted(n) for n in found[:3]) + more


def _check_digest(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise WeightsError(f"{path}: tampered with or damaged: sha256 {expected} expected, got {got}")


# ---- data: one pass -------------------------------------------------------------------------------------------------

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
