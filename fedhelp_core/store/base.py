"""What a store is: write-once objects in a folder (`local`) or a bucket (`s3`), where hub and silos meet. `open` opens one by its URL.

The round protocol and softlabels use it, and nobody else reads or writes exchanged objects. An object is either write-once
(`put_new`) or, for progress alone, mutable (`put`); in both cases a reader sees all of it or nothing.
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from fedhelp_core.disk import Place, disk_errors, scratch_file
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, NotFound, PermanentError, StorageFull, StoreUnavailable

_KEY = re.compile(r"[^/\x00-\x1f\\]+(/[^/\x00-\x1f\\]+)*")
_LONGEST_KEY = 1024  # bytes; S3's own limit
SCRATCH = ".scratch"
"""First part of no key: a folder keeps its incomplete objects there."""
STORE_FOLDER = Place({
    NotFound: "no such object",
    StorageFull: "no space left in the store ({why}); free some or enlarge the volume, then run again",
    AccessDenied: "the store refuses access ({why}); give this user read and write permission on the folder",
    PermanentError: "cannot be an object's name in this folder ({why})",
    StoreUnavailable: "the store does not answer as it should ({why}); check the volume and try again",
}, otherwise=StoreUnavailable)


class Store(ABC):
    """Objects by key ('a/b/c'). Safe to use from several threads and, opened once in each, several processes.

    Every method may raise StoreUnavailable, AccessDenied, StorageFull, ConfigError (no such bucket), and PermanentError
    for a key that is no key.
    """

    url: str
    is_local: bool = False
    """Whether objects are files of this machine."""
    pauses: tuple[float, float] = (0.2, 2.0)
    """The shortest and the longest time in seconds between two looks: a look at a bucket is a request."""

    @abstractmethod
    def put_new(self, key: str, body: bytes | Path) -> bool:
        """Write the object unless it exists: True if this call wrote it, False (and nothing changed) if it was there."""

    @abstractmethod
    def put(self, key: str, body: bytes | Path) -> None:
        """Write or replace the object; for progress only, never for what others decide by."""

    @abstractmethod
    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The object's bytes.

        Raises:
            NotFound: no such object.
            PermanentError: it is larger than `max_bytes`; nothing was read.
        """

    @abstractmethod
    def fetch(self, key: str, max_bytes: int | None = None) -> Path:
        """A local file with the object's bytes, only to be read: the object itself, or a copy that `release` drops. Raises as get."""

    @abstractmethod
    def release(self, path: Path) -> None:
        """Drop the copy that `fetch` made on this machine; does nothing where `path` is the object itself."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """The object's size in bytes; None if there is none."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Sorted keys that start with `prefix`."""

    @abstractmethod
    def present(self, keys: Iterable[str], *, prefix: str) -> set[str]:
        """Which of `keys`, all below `prefix`, exist: one stat each in a folder, at most one listing in a bucket."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; it need not exist."""

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """A folder for files to be made, on the store's own disk if it has one."""

    @contextmanager
    def scratch_file(self, folder: Path | None = None) -> Iterator[Path]:
        """The path of a file to be made, in `folder`, or where `give` need not copy it; gone afterwards."""
        folder = folder or self.scratch
        with disk_errors(folder, STORE_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        with scratch_file(folder) as path:
            yield path

    def give(self, key: str, path: Path) -> bool:
        """`put_new(key, path)` of a file that the caller never writes to again, so that a folder on the same disk links it."""
        return self.put_new(key, path)

    def probe(self) -> None:
        """Write, write again, read, list and delete one object: whether this store keeps the promises that rounds rest on.

        Leaves nothing behind: a folder that was not there is gone again.

        Raises:
            ConfigError: the store overwrites what must be write-once, or loses what was written.
        """
        key = f"probe-{secrets.token_hex(8)}"
        with self.without_new_folders():
            try:
                first, second = self.put_new(key, b"first"), self.put_new(key, b"second")
                if not first or second or self.get(key, 16) != b"first":
                    raise ConfigError(
                        f"{self.url}: this store does not honour conditional writes (If-None-Match: *), so two writers could overwrite each other;"
                        " upgrade it, or use another")
                if key not in self.list("probe-"):
                    raise ConfigError(f"{self.url}: an object just written is missing from the listing; use a strongly consistent store")
            finally:
                with suppress(FedHelpError):
                    self.delete(key)

    def without_new_folders(self) -> AbstractContextManager[None]:
        """Removes at its end the folders that were made for objects which are gone by then. A bucket has no folders."""
        return nullcontext()


def check_key(key: str) -> str:
    """`key`, if it is one: parts joined by '/', none of them '.' or '..', no control character, not absolute.

    Raises:
        PermanentError: it is not.
    """
    parts = key.split("/")
    if not _KEY.fullmatch(key) or ".." in parts or "." in parts or parts[0] == SCRATCH or len(key.encode(errors="replace")) > _LONGEST_KEY:
        raise PermanentError(f"object key {key[:80]!r}: expected parts joined by '/', without '..', control characters or a leading '/'")
    return key


def check_size(where: str, size: int, max_bytes: int | None) -> None:
    """Compare an object's size with what its reader takes.

    Raises:
        PermanentError: it is larger.
    """
    if max_bytes is not None and size > max_bytes:
        raise PermanentError(f"{where}: holds {size} bytes, at most {max_bytes} expected; it is not what it should be, or raise the limit")
