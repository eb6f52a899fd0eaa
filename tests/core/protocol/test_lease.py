"""Leases: a worker goes on while its hub lives, ends itself soon after, and never compares two clocks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedhelp_core.errors import HubSilent, StoreUnavailable
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.protocol.lease import Lease, last_sign, watch_lease
from fedhelp_core.store.base import Store
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.open import open_store

SECONDS = 3.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder: how soon a bucket answers depends on the machine."""
    return open_store(str(tmp_path / "store"))


class Watched:
    """A worker's watch on its lease, beside the test."""

    def __init__(self, store: Store, silo: str = "aachen") -> None:
        self.ended: list[HubSilent] = []
        self._thread = threading.Thread(target=watch_lease, args=(store, "run-1", silo, SECONDS, self.ended.append), daemon=True)
        self._thread.start()

    def ends(self) -> HubSilent:
        self._thread.join(60)
        (error,) = self.ended
        return error


def test_a_worker_goes_on_while_its_hub_lives_and_ends_when_it_is_gone(store: Store) -> None:
    with Lease(store, "run-1", SECONDS):
        watched = Watched(store)
        time.sleep(2 * SECONDS)
        assert watched.ended == []
    error = watched.ends()
    assert error.exit_code == 34
    assert str(error).startswith("run 'run-1': no hub has renewed runs/run-1/lease.json or runs/run-1/leases/aachen.json for 3 s")


def test_a_supervisor_of_one_silo_keeps_that_silo_alone(store: Store) -> None:
    with Lease(store, "run-1", SECONDS, silo="aachen"):
        kept, other = Watched(store), Watched(store, "bonn")
        other.ends()
        assert kept.ended == []


def test_a_restarted_hub_takes_the_lease_over(store: Store) -> None:
    with Lease(store, "run-1", SECONDS):
        watched = Watched(store)
    with Lease(store, "run-1", SECONDS):
        time.sleep(2 * SECONDS)
        assert watched.ended == []


def test_a_store_that_cannot_be_read_is_no_sign_of_the_hubs_end(tmp_path: Path) -> None:
    class Away(LocalStore):
        away = True

        def get(self, key: str, max_bytes: int | None = None) -> bytes:
            if self.away:
                raise StoreUnavailable("away")
            return super().get(key, max_bytes)

    store = Away(tmp_path)
    watched = Watched(store)
    time.sleep(2 * SECONDS)
    assert watched.ended == []
    store.away = False
    watched.ends()


def test_a_wrong_clock_of_the_hub_does_not_matter(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    watched = Watched(store)
    for number in range(10):
        store.put(RunKeys("run-1").lease(), b'{"counter": %d, "seconds": 2, "renewed": "1970-01-01T00:00:00+00:00"}' % number)
        time.sleep(SECONDS / 5)
    assert watched.ended == []


def test_a_worker_whose_hub_never_was_ends_with_its_exit_code_and_one_sentence(tmp_path: Path) -> None:
    program = (
        "import sys, time; from fedhelp_core.protocol.lease import end_without_hub; from fedhelp_core.store.open import open_store;"
        "end_without_hub(open_store(sys.argv[1]), 'run-1', 'aachen', 1.0, lambda e: print('fedhelp-worker train: error:', e, file=sys.stderr));"
        "time.sleep(60)")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 34
    assert done.stderr.startswith("fedhelp-worker train: error: run 'run-1': no hub has renewed") and done.stderr.count("\n") == 1


def test_people_see_the_last_sign_of_a_hub(store: Store) -> None:
    assert last_sign(store, "run-1", "aachen") is None
    store.put(RunKeys("run-1").lease(), b"damaged")
    assert last_sign(store, "run-1", "aachen") is None
    with Lease(store, "run-1", SECONDS, silo="aachen"):
        until = time.monotonic() + 30
        while (sign := last_sign(store, "run-1", "aachen")) is None and time.monotonic() < until:
            time.sleep(0.05)
    assert sign is not None and sign.seconds == SECONDS
    assert not sign.over(sign.renewed + timedelta(seconds=1)) and sign.over(sign.renewed + timedelta(seconds=4))
    assert abs((sign.renewed - datetime.now(UTC)).total_seconds()) < 60
