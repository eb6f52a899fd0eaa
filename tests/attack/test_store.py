"""A silo that may write in the store's folder puts something else there than a file: nothing hangs, nothing outside is read or written."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.store.local import LocalStore

KEY = "runs/r/rounds/1/updates/brno.json"
Plant = Callable[[Path, Path], None]


def _linked_folder(target: Path, secret: Path) -> None:
    target.parent.rmdir()
    target.parent.symlink_to(secret.parent)


def _socket(target: Path, _secret: Path) -> None:
    os.chdir(target.parent)  # a socket's name may have 108 characters
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(target.name)


PLANTS: dict[str, Plant] = {
    "a link to a file": lambda target, secret: target.symlink_to(secret), "a link to a device": lambda target, _: target.symlink_to("/dev/zero"),
    "a link to nothing": lambda target, _: target.symlink_to("/nowhere"), "a link to itself": lambda target, _: target.symlink_to(target),
    "a pipe": lambda target, _: os.mkfifo(target), "a folder": lambda target, _: target.mkdir(), "a socket": _socket,
    "its folder is a link": _linked_folder}


@pytest.mark.parametrize("what", PLANTS)
def test_what_is_no_regular_file_is_no_object(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret, store = tmp_path / "secret" / "brno.json", LocalStore(tmp_path / "store")
    secret.parent.mkdir()
    secret.write_bytes(b"private")
    target = tmp_path / "store" / KEY
    target.parent.mkdir(parents=True)
    PLANTS[what](target, secret)
    for read in (store.get, store.fetch):
        with pytest.raises(NotFound):
            read(KEY, 10**6)
    assert KEY not in store.list("runs/") or what == "a folder"
    with suppress(FedHelpError):
        store.put(KEY, b"ours")
    assert secret.read_bytes() == b"private"
