"""The ledger of what left a hospital: a store that writes down every object before it is sent. Read by its data officer.

`egress.jsonl` on the silo's own volume is append-only, one JSON object a line: time, run, object's key, bytes, sha256. An object
is in it before its first byte leaves, so the ledger may hold one that a kill kept back, or that was there already; never less.
Called by work.py, which gives a silo no other store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from fedhelp_core.disk import digest_of, disk_errors
from fedhelp_core.store.base import Store


class LedgeredStore(Store):
    """`store`, with everything that is written to it recorded in the file `ledger` first."""

    def __init__(self, store: Store, ledger: Path, run_id: str) -> None:
        self._store = store
        self._ledger = ledger
        self._run_id = run_id
        self.url = store.url
        self.is_local = store.is_local
        self.pauses = store.pauses

    def put_new(self, key: str, body: bytes | Path) -> bool:
        """As Store.put_new, recorded first."""
        self._record(key, body)
        return self._store.put_new(key, body)

    def put(self, key: str, body: bytes | Path) -> None:
        """As Store.put, recorded first."""
        self._record(key, body)
        self._store.put(key, body)

    def give(self, key: str, path: Path) -> bool:
        """As Store.give, recorded first."""
        self._record(key, path)
        return self._store.give(key, path)

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """As Store.get."""
        return self._store.get(key, max_bytes)

    def fetch(self, key: str, max_bytes: int | None = None) -> Path:
        """As Store.fetch."""
        return self._store.fetch(key, max_bytes)

    def release(self, path: Path) -> None:
        """As Store.release."""
        self._store.release(path)

    def size(self, key: str) -> int | None:
        """As Store.size."""
        return self._store.size(key)

    def list(self, prefix: str) -> list[str]:
        """As Store.list."""
        return self._store.list(prefix)

    def present(self, keys: Iterable[str], *, prefix: str) -> set[str]:
        """As Store.present."""
        return self._store.present(keys, prefix=prefix)

    def delete(self, key: str) -> None:
        """As Store.delete."""
        self._store.delete(key)

    @property
    def scratch(self) -> Path:
        """As Store.scratch."""
        return self._store.scratch

    def without_new_folders(self) -> AbstractContextManager[None]:
        """As Store.without_new_folders."""
        return self._store.without_new_folders()

    def _record(self, key: str, body: bytes | Path) -> None:
        sha256, size = digest_of(body)
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run": self._run_id, "object": key, "bytes": size, "sha256": sha256}
        with disk_errors(self._ledger), self._ledger.open("ab", buffering=0) as handle:
            handle.write(f"{json.dumps(entry)}\n".encode())
            os.fsync(handle.fileno())
