"""The egress ledger: nothing leaves that is not in it first."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import AccessDenied, StoreUnavailable
from fedhelp_core.protocol.run import Run
from fedhelp_core.silo.egress import LedgeredStore
from fedhelp_core.store.local import LocalStore

BODY = b"the weights of an update"


class Broken(LocalStore):
    """A store whose writes do what `then` does."""

    def __init__(self, root: Path, then: Callable[[], Any]) -> None:
        super().__init__(root)
        self.then = then

    def put_new(self, key: str, body: bytes | Path) -> bool:
        self.then()
        return super().put_new(key, body)

    put = give = put_new  # type: ignore[assignment]


def entries(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()] if ledger.exists() else []


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "egress.jsonl"


@pytest.mark.parametrize("how", ["put_new", "put", "give"])
@pytest.mark.parametrize("as_file", [True, False])
def test_an_entry_names_run_object_size_and_sha256(tmp_path: Path, ledger: Path, how: str, as_file: bool) -> None:
    store = LedgeredStore(LocalStore(tmp_path / "store"), ledger, "run-1")
    (tmp_path / "file").write_bytes(BODY)
    getattr(store, how)("runs/run-1/x", tmp_path / "file" if as_file or how == "give" else BODY)
    (entry,) = entries(ledger)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"run": "run-1", "object": "runs/run-1/x", "bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()}
    assert store.get("runs/run-1/x") == BODY


@pytest.mark.parametrize("how", ["put_new", "put", "give"])
def test_an_object_is_recorded_before_it_is_sent(tmp_path: Path, ledger: Path, how: str) -> None:
    """The connection fails, or the process is killed, at the first byte: the ledger has it already."""
    (tmp_path / "file").write_bytes(BODY)

    def away() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        getattr(LedgeredStore(Broken(tmp_path / "store", away), ledger, "run-1"), how)("k", tmp_path / "file")
    assert [entry["object"] for entry in entries(ledger)] == ["k"]
    child = os.fork()
    if child == 0:
        killed = LedgeredStore(Broken(tmp_path / "store", lambda: os.kill(os.getpid(), 9)), ledger, "run-1")
        getattr(killed, how)("l", tmp_path / "file")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 9
    assert [entry["object"] for entry in entries(ledger)] == ["k", "l"]
    assert LocalStore(tmp_path / "store").list("") == []


def test_nothing_is_sent_that_cannot_be_recorded(tmp_path: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.mkdir()  # no file: nothing can be written to it, by root neither
    store = LedgeredStore(LocalStore(tmp_path / "store"), ledger, "run-1")
    for send in (store.put_new, store.put):
        with pytest.raises((IsADirectoryError, AccessDenied)):
            send("k", BODY)
    assert store.size("k") is None


def test_reading_records_nothing(tmp_path: Path, ledger: Path) -> None:
    LocalStore(tmp_path / "store").put_new("a/k", BODY)
    store = LedgeredStore(LocalStore(tmp_path / "store"), ledger, "run-1")
    assert store.get("a/k") == store.fetch("a/k").read_bytes() == BODY
    assert store.size("a/k") and store.list("a/") and store.present(["a/k"], prefix="a/")
    store.delete("a/k")
    assert entries(ledger) == []


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path, ledger: Path, peak_memory: Callable[[Callable[[], object]], int]) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 * 2**20)
    store = LedgeredStore(LocalStore(tmp_path / "store", durable=False), ledger, "run-1")
    assert peak_memory(lambda: store.put_new("k", tmp_path / "large")) < 4 * 2**20
    assert entries(ledger)[0]["bytes"] == 64 * 2**20


def test_an_update_leaves_as_weights_and_then_as_manifest(tmp_path: Path, ledger: Path) -> None:
    hub = Run(LocalStore(tmp_path / "store"), "run-1")
    weights = {"w": np.arange(4, dtype=np.float32)}
    hub.initialise(weights, "net")
    silo = Run(LedgeredStore(LocalStore(tmp_path / "store"), ledger, "run-1"), "run-1")
    manifest = silo.submit_update("aachen", 1, weights, trained_from="0" * 64, architecture="net", samples=3, loss=0.5, metrics={})
    sent = entries(ledger)
    assert [entry["object"] for entry in sent] == [manifest.weights, silo.keys.update("aachen", 1)]
    assert sent[0]["sha256"] == manifest.sha256
    silo.submit_update("aachen", 1, weights, trained_from="0" * 64, architecture="net", samples=3, loss=0.5, metrics={})
    assert entries(ledger) == sent  # answered already: nothing leaves
