"""Write-once objects in a folder or a bucket: the only place where hub and silos meet.

`open_store(url)` gives a `Store` for a plain folder, `file:///folder` or `s3://bucket/prefix`; rounds.py, facts.py and
softlabels use it, and nobody else reads or writes exchanged objects. An object is either write-once (`put_new`) or, for
progress alone, mutable (`put`); in both cases a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StorageFull, StoreUnavailable
from fedhelp_core.store.url import folder_of

_T = TypeVar("_T")

_KEY = re.compile(r"[^/\x00-\x1f\\]+(/[^/\x00-\x1f\\]+)*")
_LONGEST_KEY = 1024  # bytes; S3's own limit
_SCRATCH = ".scratch"  # incomplete objects; hidden from `list`, refused as a key
_STALE_SCRATCH = 24 * 3600.0  # seconds after which an unfinished object must be of a killed process


class Store(Protocol):
    """Objects by key ('a/b/c'). Safe to use from several threads and, opened once in each, several processes.

    Every method may raise StoreUnavailable, AccessDenied, StorageFull, ConfigError (no such bucket), and PermanentError
    for a key that is no key.
    """

    url: str

    def put_new(self, key: str, body: bytes | Path) -> bool:
        """Write the object unless it exists: True if this call wrote it, False (and nothing changed) if it was there."""

    def put(self, key: str, body: bytes | Path) -> None:
        """Write or replace the object; for progress only, never for what others decide by."""

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The object's bytes.

        Raises:
            NotFound: no such object.
            PermanentError: it is larger than `max_bytes`; nothing was read.
        """

    def fetch(self, key: str, max_bytes: int | None = None) -> Path:
        """A local file with the object's bytes, only to be read: the object itself, or a copy that `release` drops. Raises as get."""

    def size(self, key: str) -> int | None:
        """The object's size in bytes; None if there is none."""

    def list(self, prefix: str) -> list[str]:
        """Sorted keys that start with `prefix`."""

    def delete(self, key: str) -> None:
        """Remove the object; it need not exist."""


def open_store(url: str, *, endpoint_url: str | None = None) -> Store:
    """The store at `url`: a plain folder, file:///folder, or s3://bucket/prefix (`endpoint_url`: S3 other than AWS).

    Reaches for nothing yet: an unreachable store shows at the first call.

    Raises:
        ConfigError: `url` is none of these.
    """
    try:
        folder = folder_of(url)
    except ValueError as e:
        raise ConfigError(f"store url: {e}") from e
    if folder is not None:
        return LocalStore(folder)
    from fedhelp_core.store.s3 import S3Store  # boto3 is 30 MB and 0.3 s to import; a folder needs none of it

    return S3Store(url, endpoint_url=endpoint_url)


def is_local(store: Store) -> bool:
    """Whether objects are files of this machine, so that a look costs microseconds."""
    return not store.url.startswith("s3://")


def release(store: Store, path: Path) -> None:
    """Drop what `store.fetch` copied to this machine; does nothing where `path` is the object itself."""
    if not is_local(store):
        path.unlink(missing_ok=True)


@contextmanager
def scratch_file(store: Store, folder: Path | None = None) -> Iterator[Path]:
    """The path of a file to be made, in `folder`, or where `give` need not copy it; gone afterwards."""
    if folder is None:
        folder = store.scratch if isinstance(store, LocalStore) else Path(tempfile.gettempdir())
    with _explained(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / _scratch_name()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def give(store: Store, key: str, path: Path) -> bool:
    """`store.put_new(key, path)` of a file that the caller never writes to again, so that a folder on the same disk links it."""
    if isinstance(store, LocalStore):
        return store.take(key, path)
    return store.put_new(key, path)


def present(store: Store, keys: Iterable[str], *, prefix: str) -> set[str]:
    """Which of `keys`, all below `prefix`, exist: one stat each in a folder, one listing in a bucket."""
    wanted = set(keys)
    if is_local(store) or len(wanted) < 2:
        return {key for key in wanted if store.size(key) is not None}
    return wanted.intersection(store.list(prefix))


def probe(store: Store) -> None:
    """Write, write again, read, list and delete one object: whether this store keeps the promises that rounds rest on.

    Leaves nothing behind: a folder that was not there is gone again.

    Raises:
        ConfigError: the store overwrites what must be write-once, or loses what was written.
    """
    key = f"probe-{secrets.token_hex(8)}"
    made = store.absent_folders() if isinstance(store, LocalStore) else ()
    try:
        first, second = store.put_new(key, b"first"), store.put_new(key, b"second")
        if not first or second or store.get(key, 16) != b"first":
            raise ConfigError(
                f"{store.url}: this store does not honour conditional writes (If-None-Match: *), so two writers could overwrite each other;"
                " upgrade it, or use another")
        if key not in store.list("probe-"):
            raise ConfigError(f"{store.url}: an object just written is missing from the listing; use a strongly consistent store")
    finally:
        with suppress(FedHelpError):
            store.delete(key)
        if isinstance(store, LocalStore):
            store.remove_folders(made)


def check_key(key: str) -> str:
    """`key`, if it is one: parts joined by '/', none of them '.' or '..', no control character, not absolute.

    Raises:
        PermanentError: it is not.
    """
    parts = key.split("/")
    if not _KEY.fullmatch(key) or ".." in parts or "." in parts or parts[0] == _SCRATCH or len(key.encode(errors="replace")) > _LONGEST_KEY:
        raise PermanentError(f"object key {key[:80]!r}: expected parts joined by '/', without '..', control characters or a leading '/'")
    return key


class Poller:
    """Pauses between two looks at a store that grow with the time waited: at most a tenth of it is lost by looking late.

    In a folder 1 ms to 20 ms (a look is a stat of a few µs), in a bucket 0.2 s to 2 s (a look is a request).
    """

    def __init__(self, store: Store) -> None:
        self._shortest, self._longest = (0.001, 0.020) if is_local(store) else (0.2, 2.0)
        self._started = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since construction or `reset`."""
        return time.monotonic() - self._started

    def reset(self) -> None:
        """Look often again: something has just happened."""
        self._started = time.monotonic()

    @property
    def interval(self) -> float:
        """Seconds till the next look."""
        return min(self._longest, max(self._shortest, self.waited / 10))

    def pause(self, *, until: float | None = None) -> None:
        """Sleep till the next look, not beyond the monotonic time `until`."""
        seconds = self.interval
        if until is not None:
            seconds = min(seconds, max(0.0, until - time.monotonic()))
        time.sleep(seconds)


def wait_for(store: Store, look: Callable[[], _T | None], *, timeout: float | None = None) -> _T | None:
    """What `look` gives as soon as that is not None; None after `timeout` seconds (null: never)."""
    poller = Poller(store)
    until = None if timeout is None else time.monotonic() + timeout
    while (found := look()) is None:
        if until is not None and time.monotonic() >= until:
            return None
        poller.pause(until=until)
    return found


class LocalStore:
    """A folder. `put_new` completes a scratch file, then gives it its name by link(2), which fails if the name is taken.

    `durable`: the file's content reaches the disk (fsync) before it gets its name, so that after a power loss a name
    never stands for missing bytes; the name itself may be lost, which is the loss of work in flight only, so folders are
    not synced. A killed process needs none of it. Measured on ext4 on a virtual disk, with four workers and updates of
    1.1 MB: 17 ms a round with it, 14 ms without; 0.3 ms a manifest. Cheap enough to be always on.
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self.root = root.absolute()
        self.url = str(self.root)
        self._base = self.url.rstrip("/") + "/"
        self._scratch = self._base + _SCRATCH + "/"
        self._durable = durable
        self._swept = False

    def put_new(self, key: str, body: bytes | Path) -> bool:
        """As Store.put_new."""
        target = self._base + check_key(key)
        if self.size(key) is not None:  # saves writing what is there already; link decides in the end
            return False
        with _explained(target), self._complete(body) as scratch:
            return self._link(scratch, target)

    def take(self, key: str, path: Path) -> bool:
        """As `put_new` of a complete file that nobody writes to again: no copy if it is on the store's disk."""
        target = self._base + check_key(key)
        if os.stat(path).st_dev != os.stat(self.scratch).st_dev:
            return self.put_new(key, path)
        with _explained(target):
            if self._durable:
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            return self._link(str(path), target)

    def put(self, key: str, body: bytes | Path) -> None:
        """As Store.put."""
        target = self._base + check_key(key)
        with _explained(target), self._complete(body) as scratch:
            _with_parents(os.replace, scratch, target)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """As Store.get."""
        path = self._base + check_key(key)
        with _explained(path), open(path, "rb", buffering=0) as handle:
            _check_size(path, os.fstat(handle.fileno()).st_size, max_bytes)
            return handle.read() if max_bytes is None else _read_at_most(handle.fileno(), path, max_bytes)

    def fetch(self, key: str, max_bytes: int | None = None) -> Path:
        """As Store.fetch: the object itself."""
        path = self._base + check_key(key)
        size = self.size(key)
        if size is None:
            raise NotFound(f"{path}: no such object")
        _check_size(path, size, max_bytes)
        return Path(path)

    def size(self, key: str) -> int | None:
        """As Store.size."""
        path = self._base + check_key(key)
        try:
            status = os.stat(path)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise _error_for(e, path) from e

    def list(self, prefix: str) -> list[str]:
        """As Store.list."""
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        with _explained(self._base + folder):
            return sorted(key for key in _walk(self._base, folder) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """As Store.delete."""
        path = self._base + check_key(key)
        with suppress(NotFound), _explained(path):
            os.unlink(path)

    @property
    def scratch(self) -> Path:
        """The folder of unfinished objects, which exists from now on."""
        if not self._swept:
            self._swept = True
            with _explained(self._scratch):
                os.makedirs(self._scratch, exist_ok=True)
                _sweep(self._scratch)
        return Path(self._scratch)

    def absent_folders(self) -> tuple[Path, ...]:
        """What the first write will make, the innermost first."""
        scratch = Path(self._scratch)
        return tuple(folder for folder in (scratch, *scratch.parents) if not folder.exists())

    def remove_folders(self, folders: Sequence[Path]) -> None:
        """Remove those that are empty, in this order; the next write makes them again."""
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
        self._swept = self._swept and not folders

    def _link(self, source: str, target: str) -> bool:
        try:
            _with_parents(os.link, source, target)
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise ConfigError(f"{self.url}: this file system has no hard links, which write-once objects need; use another folder") from e
            raise
        return True

    @contextmanager
    def _complete(self, body: bytes | Path) -> Iterator[str]:
        """The path of a complete file with `body`'s bytes on this file system, gone afterwards."""
        scratch = str(self.scratch / _scratch_name())
        descriptor = _with_parents(lambda path, _: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), scratch, scratch)
        try:
            try:
                _fill(descriptor, body)
                if self._durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield scratch
        finally:
            with suppress(FileNotFoundError):
                os.unlink(scratch)


def _scratch_name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def _with_parents(action: Callable[[str, str], _T], source: str, target: str) -> _T:
    """`action(source, target)`, again with the target's folders made if they were missing."""
    try:
        return action(source, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        return action(source, target)


def _fill(descriptor: int, body: bytes | Path) -> None:
    """Write all of `body`, a file in pieces of 1 MiB."""
    if isinstance(body, Path):
        with open(body, "rb") as source, open(descriptor, "wb", closefd=False) as destination:
            shutil.copyfileobj(source, destination, 2**20)
        return
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view):]


def _sweep(scratch: str) -> None:
    """Drop what killed processes left unfinished long ago."""
    with os.scandir(scratch) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _STALE_SCRATCH:
                    os.unlink(entry.path)


def _walk(base: str, folder: str) -> Iterator[str]:
    """Keys of all files below `folder` (a key, '' for the root), in no order; links to folders are not followed."""
    try:
        entries = list(os.scandir(base + folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        key = f"{folder}/{entry.name}" if folder else entry.name
        if key == _SCRATCH:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(base, key)
        else:
            yield key


def _check_size(path: str, size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise PermanentError(f"{path}: holds {size} bytes, at most {max_bytes} expected; it is not what it should be, or raise the limit")


def _read_at_most(descriptor: int, path: str, max_bytes: int) -> bytes:
    """All bytes; the limit holds even if the file grew since its size was looked at."""
    body = os.read(descriptor, max_bytes + 1)
    while len(body) <= max_bytes and (more := os.read(descriptor, max_bytes + 1 - len(body))):
        body += more
    _check_size(path, len(body), max_bytes)
    return body


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """OSErrors about `path` as errors of our own."""
    try:
        yield
    except OSError as e:
        raise _error_for(e, path) from e


def _error_for(e: OSError, path: str) -> FedHelpError:
    if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return NotFound(f"{path}: no such object")
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{path}: no space left in the store ({e.strerror}); free some or enlarge the volume, then run again")
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(f"{path}: the store refuses access ({e.strerror}); give this user read and write permission on the folder")
    if e.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP):
        return PermanentError(f"{path[:200]}: cannot be an object's name in this folder ({e.strerror})")
    return StoreUnavailable(f"{path}: the store does not answer as it should ({e.strerror or e}); check the volume and try again")
