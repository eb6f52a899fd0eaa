"""Files on a disk: written whole or not at all, hashed in pieces, and what goes wrong with them in words.

Called wherever something is kept: the store's folder, a silo's state and caches, weights files, a study's cells. A file gets
its name when it is complete; until then it has a random one, since on a shared volume two pods may have the same process id.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StateLocked, StorageFull

_KINDS: Mapping[int, type[FedHelpError]] = {
    errno.ENOENT: NotFound, errno.ENOTDIR: NotFound, errno.EISDIR: NotFound,
    errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.EFBIG: StorageFull,
    errno.EACCES: AccessDenied, errno.EPERM: AccessDenied, errno.EROFS: AccessDenied,
    errno.ENOLCK: ConfigError, errno.ENOSYS: ConfigError, errno.EOPNOTSUPP: ConfigError,
    errno.ENAMETOOLONG: PermanentError, errno.EINVAL: PermanentError, errno.ELOOP: PermanentError,
}
_SCRATCH = ".*.tmp"  # names of files that are not complete
_STALE = 24 * 3600.0  # seconds after which an incomplete file must be of a killed process
_SHOWN = 300  # characters of a path in a message


@dataclass(frozen=True)
class Place:
    """What to say of a path in one kind of place."""

    sentences: Mapping[type[FedHelpError], str]
    """What follows 'PATH: ', by kind of error; '{why}' is the system's own word for it."""
    otherwise: type[FedHelpError] | None = None
    """The kind of errors that have no sentence of their own; None: they are raised as they are."""

    def error(self, e: OSError, path: str | Path) -> Exception:
        """`e` as an error of our own; `e` itself where this place has nothing to say about it."""
        kind = _KINDS.get(e.errno or 0)
        if kind not in self.sentences:
            kind = self.otherwise
        return e if kind is None else kind(f"{str(path)[:_SHOWN]}: {self.sentences[kind].format(why=e.strerror or e)}")


STATE_VOLUME = Place({
    StorageFull: "no space left on the silo's state volume; free some or enlarge it, then run again",
    AccessDenied: "not writable ({why}); mount the state volume read-write for this user",
    ConfigError: "its file system has no locks ({why}), which keep two workers apart; choose another volume, such as a disk or NFS version 4",
})
"""A silo's own volume: its state, its caches."""


@contextmanager
def disk_errors(path: str | Path, place: Place = STATE_VOLUME) -> Iterator[None]:
    """OSErrors about `path` as errors of our own, one sentence each."""
    try:
        yield
    except OSError as e:
        if (error := place.error(e, path)) is e:
            raise
        raise error from e


@contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """The path of a file or folder to be made in `folder`, which no other process anywhere uses; gone afterwards."""
    path = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """The path of a scratch file (or folder) that becomes `path` in one step when the block ends well; else nothing has changed.

    `durable`: the content reaches the disk before the name, so that after a power loss a name never stands for missing bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with scratch_file(path.parent) as scratch:
        yield scratch
        if durable:
            sync(scratch)
        os.replace(scratch, path)


def sweep(folder: Path, *, older_than: float = _STALE) -> None:
    """Drop the scratch files of killed processes: those in `folder` that were not written to for `older_than` seconds."""
    for path in folder.glob(_SCRATCH):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than:
                _remove(path)


def _remove(path: Path) -> None:
    """Nothing is there afterwards, or another error says more."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a folder, whatever the system calls that
        shutil.rmtree(path, ignore_errors=True)


def require_locks(folder: Path, place: Place = STATE_VOLUME) -> None:
    """Nothing where the file system of `folder`, which exists, has locks.

    Raises:
        ConfigError: it has none.
    """
    with disk_errors(folder, place):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(BlockingIOError):  # somebody holds one
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


@contextmanager
def folder_locked(folder: Path, taken: str) -> Iterator[None]:
    """Hold the lock of `folder`, which is made; it goes with the process, however that ends.

    Raises:
        StateLocked: another process holds it: `<folder>: <taken>`.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise StateLocked(f"{folder}: {taken}") from e
        yield


def write_all(handle: io.FileIO, piece: Any) -> None:
    """Write a whole buffer to an unbuffered file, which may take it in parts."""
    view = memoryview(piece).cast("B")
    while view:
        view = view[handle.write(view):]


def open_regular(path: str, flags: int) -> int:
    """An `opener` for `open`: a descriptor of the regular file itself. Nothing waits for a pipe, and no link is followed.

    Raises:
        OSError: ENOENT for what is no regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):  # a link; a socket or a device
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from e
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return descriptor


def sync(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def digest_of(body: bytes | Path) -> tuple[str, int]:
    """sha256 (hex) and size in bytes; of a file in pieces, however large it is."""
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest(), len(body)
    with body.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest(), handle.tell()
