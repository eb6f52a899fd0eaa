"""Files that are whole or not there, and what goes wrong with them in words."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from fedhelp_core.disk import STATE_VOLUME, atomic_write, digest_of, disk_errors, scratch_file, sweep
from fedhelp_core.errors import AccessDenied, StorageFull


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with atomic_write(path, durable=True) as scratch:
        scratch.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def test_what_was_there_before_stays_if_the_new_one_does_not_come_about(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(RuntimeError), atomic_write(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_can_be_made_too_and_leaves_no_rest(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "drawn") as scratch:
        (scratch / "images").mkdir(parents=True)
    assert (tmp_path / "drawn" / "images").is_dir()
    with suppress(RuntimeError), atomic_write(tmp_path / "other") as scratch:
        (scratch / "images").mkdir(parents=True)
        raise RuntimeError
    assert os.listdir(tmp_path) == ["drawn"]


def test_two_writers_with_one_process_id_do_not_share_a_scratch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first processes of two pods on one volume."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    both = threading.Barrier(2)
    names = []

    def write(text: str) -> None:
        with atomic_write(tmp_path / "file") as scratch:
            names.append(scratch)
            scratch.write_text(text)
            both.wait(10)
            assert scratch.read_text() == text

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert (tmp_path / "file").read_text() in ("one", "two")


def test_what_killed_processes_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as fresh, scratch_file(tmp_path) as old:
        fresh.touch()
        old.touch()
        os.utime(old, (0, 0))
        (tmp_path / "kept.tmp").touch()
        with atomic_write(tmp_path / "file") as scratch:
            scratch.touch()
        assert sorted(os.listdir(tmp_path)) == sorted([fresh.name, "file", "kept.tmp"])
        sweep(tmp_path, older_than=0)
        assert sorted(os.listdir(tmp_path)) == ["file", "kept.tmp"]


@pytest.mark.parametrize(("number", "expected", "words"), [
    (errno.ENOSPC, StorageFull, "no space left on the silo's state volume"), (errno.EDQUOT, StorageFull, "no space left"),
    (errno.EROFS, AccessDenied, "not writable (Read-only file system)"), (errno.EACCES, AccessDenied, "not writable")])
def test_errors_of_a_silos_volume_have_names(number: int, expected: type[Exception], words: str) -> None:
    with pytest.raises(expected) as error, disk_errors("/state/x"):
        raise OSError(number, os.strerror(number))
    assert str(error.value).startswith("/state/x: ") and words in str(error.value)


def test_an_error_that_a_place_has_no_words_for_goes_on_as_it_is() -> None:
    error = OSError(errno.EIO, "bad disk")
    assert STATE_VOLUME.error(error, "/x") is error
    with pytest.raises(OSError, match="bad disk"), disk_errors("/x"):
        raise error


def test_bytes_and_files_have_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_of(b"abc") == digest_of(tmp_path / "file") == (hashlib.sha256(b"abc").hexdigest(), 3)
