"""Whether anybody still wants a worker's work: a small object that the hub keeps changing while it supervises a run.

`Lease` is the hub's side: who supervises all silos renews runs/<run>/lease.json, who supervises one renews
runs/<run>/leases/<silo>.json; a counter, and the time for people. `end_without_hub` is the worker's side: a thread that
looks whether either has changed, by the worker's own clock alone, so that no two clocks are ever compared. A worker whose
hub has been silent for longer than the lease ends itself with exit code 34, and its GPU is free. Time in which the store
cannot be read does not count: that is no sign of the hub's end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from fedhelp_core.errors import FedHelpError, HubSilent, NotFound, PermanentError
from fedhelp_core.protocol.documents import Sign, dump, read
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.store.base import Store

_RENEWALS = 5  # in the time of a lease: four may be lost
_LOOKS = 10  # in the time of a lease
_LONGEST_LOOK = 30.0  # seconds


def lease_keys(run_id: str, silo: str) -> tuple[str, str]:
    """The objects that may keep `silo`'s work alive: the whole run's, and its own."""
    keys = RunKeys(run_id)
    return keys.lease(), keys.lease(silo)


class Lease:
    """The hub's side: while entered, the lease is renewed from a thread of its own."""

    def __init__(self, store: Store, run_id: str, seconds: float, *, silo: str | None = None) -> None:
        self._store = store
        self._key = RunKeys(run_id).lease(silo)
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        counter = time.time_ns()  # a restarted hub must not repeat the last one's
        while True:
            counter += 1
            sign = Sign(counter=counter, seconds=self._seconds, renewed=datetime.now(UTC).replace(microsecond=0))
            with contextlib.suppress(FedHelpError):  # the store is away: the next renewal says as much
                self._store.put(self._key, dump(sign))
            if self._stop.wait(self._seconds / _RENEWALS):
                return


def last_sign(store: Store, run_id: str, silo: str) -> Sign | None:
    """The newest of the leases that keep the silo's work alive; None if no hub ever gave one that can be read."""
    signs = []
    for key in lease_keys(run_id, silo):
        with contextlib.suppress(PermanentError):
            signs.append(read(store, Sign, key))
    return max(filter(None, signs), key=lambda sign: sign.renewed, default=None)


def end_without_hub(store: Store, run_id: str, silo: str, seconds: float, say: Callable[[HubSilent], None]) -> None:
    """The worker's side: watch from a thread, and end this process once the hub has been silent for `seconds`."""

    def end(error: HubSilent) -> None:
        say(error)
        os._exit(error.exit_code)  # at any moment: what is written is written whole, and the rest is done again

    threading.Thread(target=watch_lease, args=(store, run_id, silo, seconds, end), daemon=True, name="lease-watch").start()


def watch_lease(store: Store, run_id: str, silo: str, seconds: float, end: Callable[[HubSilent], None]) -> None:
    """Return after calling `end`, when no lease of the silo's has changed for `seconds` in which the store was readable."""
    keys = lease_keys(run_id, silo)
    seen: list[bytes | None] = [None] * len(keys)
    silent, looked = 0.0, time.monotonic()
    while silent < seconds:
        time.sleep(min(_LONGEST_LOOK, seconds / _LOOKS))
        try:
            found = [_read(store, key) for key in keys]
        except FedHelpError:
            looked = time.monotonic()
            continue
        now = time.monotonic()
        silent = silent + now - looked if found == seen else 0.0
        seen, looked = found, now
    end(HubSilent(
        f"run {run_id!r}: no hub has renewed {keys[0]} or {keys[1]} for {seconds:g} s (protocol.lease), so nobody waits for this work;"
        " start the run again, and it goes on after the last finished round"))


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key, Sign.max_bytes)
    except NotFound:
        return None
