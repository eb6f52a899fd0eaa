"""Weights files: write and read. Called by silos, the round protocol, averaging and caches; numpy only, never pickle.

The writer is our own because the same weights must give the same bytes, so that a file's sha256 names its content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.disk import Place, disk_errors, open_regular, write_all
from fedhelp_core.errors import AccessDenied, NotFound, StorageFull, WeightsError
from fedhelp_core.weights.header import MAX_HEADER_BYTES, Header, Weights, WeightsSpec, canonical_header, numpy_dtype, parse_header, require_spec

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last change in nanoseconds."""
_HEADER_SLACK = 4096  # bytes: a header that is not ours is read so far, to say what is wrong with it
CHUNK_BYTES = 2**18  # per read: stays in the second-level cache between reading, hashing and arithmetic
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dlit]|c[\w.]+\n")  # how protocols 2-5 and 0 begin
WEIGHTS_FILE = Place({
    NotFound: "no such weights file",
    StorageFull: "no space left for the weights file; free some, then run again",
    AccessDenied: "the weights file refuses access ({why}); check its permissions",
    WeightsError: "the weights file cannot be read or written ({why})",
}, otherwise=WeightsError)


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
    with disk_errors(path, WEIGHTS_FILE), path.open("wb", buffering=0) as handle:
        for piece in _pieces(weights, architecture):
            digest.update(piece)
            write_all(handle, piece)
    return digest.hexdigest()


def read_header(path: Path, *, max_bytes: int | None = None) -> Header:
    """The file's header, checked in itself: offsets within the file, no gap, no overlap, sizes that fit dtypes and shapes.

    Raises:
        WeightsError: which fault it has.
    """
    with WeightsFile(path) as file:
        return file.header(max_bytes)


def read_weights(path: Path, *, expected: WeightsSpec | None, max_bytes: int, sha256: str | None) -> Weights:
    """The file's tensors as arrays that own aligned memory, checked in the one pass that reads them (not for finiteness).

    Raises:
        WeightsError: larger than `max_bytes`, damaged, not as `expected`, or its sha256 (hex) is another.
    """
    with WeightsFile(path) as file:
        header = file.header(max_bytes, expected)
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
        require_digest(path, digest.hexdigest(), str(sha256))
    return weights


def require_digest(path: Path, got: str, expected: str) -> None:
    """Compare sha256s (hex).

    Raises:
        WeightsError: they differ.
    """
    if got != expected:
        raise WeightsError(f"{path}: tampered with or damaged: sha256 {expected} expected, got {got}")


class WeightsFile:
    """A weights file open for reading at given places, from any thread; short reads are faults with a name.

    Raises:
        NotFound: no such file.
        AccessDenied: it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path, WEIGHTS_FILE):
            self._descriptor = open_regular(str(path), os.O_RDONLY)
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

    @property
    def stamp(self) -> Stamp:
        """Changes whenever somebody writes to the file, or puts another in its place."""
        status = os.fstat(self._descriptor)
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def header(self, max_bytes: int | None = None, spec: WeightsSpec | None = None) -> Header:
        """The file's header, checked in itself: offsets within the file, no gap, no overlap, sizes that fit dtypes and shapes.

        With `spec`, it must be the one header that `write_weights` gives such weights, byte by byte: whatever else could
        stand beside it would travel unseen, and a longer one is not even read.

        Raises:
            WeightsError: which fault it has, or larger than `max_bytes`.
        """
        path, size = self.path, self.size
        canonical = None if spec is None else canonical_header(spec)[0]
        most = MAX_HEADER_BYTES if canonical is None else len(canonical) + _HEADER_SLACK
        if max_bytes is not None and size > max_bytes:
            raise WeightsError(f"{path}: {size} bytes, at most {max_bytes} (protocol.max_update_bytes) expected")
        if size < 8:
            raise WeightsError(f"{path}: truncated: {size} bytes, not even a header length")
        length = int.from_bytes(self.read(0, 8), "little")
        if length > most:
            raise WeightsError(_other_format(self) or f"{path}: header too large: {length} bytes announced, at most {most} expected")
        if 8 + length > size:
            raise WeightsError(_other_format(self) or f"{path}: truncated: a header of {length} bytes announced, but the file has {size} in all")
        try:
            header = parse_header(self.read(8, length))
        except (ValueError, RecursionError) as e:
            raise WeightsError(_other_format(self) or f"{path}: header is not JSON ({str(e)[:100]}); a safetensors file expected") from e
        except WeightsError as e:
            raise WeightsError(f"{path}: {e}") from e
        if spec is not None:
            require_spec(path, header, spec)
        if header.end > size:
            raise WeightsError(f"{path}: truncated: {size} bytes, the header announces {header.end}")
        if header.end < size:
            raise WeightsError(f"{path}: {size - header.end} bytes follow the last tensor, none expected")
        if canonical is not None and self.read(0, header.data_start) != canonical:
            raise WeightsError(f"{path}: the header says the right things, but not in FedHelp's own bytes; a file written by FedHelp expected")
        return header


def _pieces(weights: Weights, architecture: str) -> Iterator[Any]:
    """The file as buffers: header, then every tensor's bytes, little-endian and C-contiguous."""
    head, header = canonical_header(WeightsSpec.from_weights(weights, architecture))
    yield head
    for entry in header.tensors:
        if entry.end > entry.begin:
            yield np.asarray(weights[entry.name], dtype=numpy_dtype(entry.dtype), order="C").reshape(-1).view(np.uint8)


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
