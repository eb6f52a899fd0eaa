"""Machines as hospitals have them: users without a name or a home, no temporary folder, file systems without locks, odd folder names."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedhelp_cli.commands import own_command, quoted
from fedhelp_core.disk import require_locks
from fedhelp_core.errors import ConfigError
from fedhelp_core.places import require_temporary_folder
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.url import folder_of
from fedhelp_core.tracking.server import require_usable

_NOBODY = "4242424"  # a user number that no list of users has

needs_root = pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to become another user")


def as_nobody(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python `code` as a user without name, home or right to write, but able to read this installation."""
    return subprocess.run(
        ["setpriv", "--reuid", _NOBODY, "--regid", "0", "--clear-groups", "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
         "env", "-i", "PATH=/usr/bin:/bin", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", code],
        capture_output=True, text=True, cwd=Path(__file__).parents[2])


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("home", [{}, {"HOME": "/"}, {"HOME": "/nowhere"}], ids=["unset", "the root", "not there"])
def test_a_user_without_a_home_can_import_and_use_what_needs_one(tmp_path: Path, home: dict[str, str]) -> None:
    done = as_nobody("""
import os, sys
from fedhelp_core.processes import exit_code_of

def work():
    import getpass
    import matplotlib.pyplot
    import torch._inductor.runtime.cache_dir_utils as caches
    from fedhelp_core.tracking.server import client_of
    print(getpass.getuser(), os.path.isdir(os.environ["HOME"]), os.access(os.environ["HOME"], os.W_OK), bool(caches.default_cache_dir()))

sys.exit(exit_code_of(work, program="work"))
""", **home)
    assert (done.returncode, done.stdout.split()) == (0, [f"uid-{_NOBODY}", "True", "True", "True"]), done.stderr


def test_without_a_temporary_folder_check_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere" / "at all")])
    with pytest.raises(ConfigError, match=r"no folder for temporary files: .* set TMPDIR"):
        require_temporary_folder()


def test_a_worker_without_a_temporary_folder_uses_its_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    require_temporary_folder(tmp_path / "state" / "tmp")
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (str(tmp_path / "state" / "tmp"),) * 2
    with tempfile.TemporaryFile() as file:
        file.write(b"x")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    require_locks(tmp_path)

    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)  # no such file system can be mounted in a test
    with pytest.raises(ConfigError, match=f"{tmp_path}: its file system has no locks .* choose another volume"):
        require_locks(tmp_path)
    with pytest.raises(ConfigError, match=r"which MLflow's SQLite file needs; name a database elsewhere as tracking.uri"):
        require_usable(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_lock_that_somebody_holds_is_a_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    require_locks(tmp_path)
    os.close(descriptor)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_told_by_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def no_links(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConfigError, match="this file system has no hard links"):
        LocalStore(tmp_path).probe()


def test_a_file_on_another_mount_of_the_same_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    plain, store = os.link, LocalStore(tmp_path / "store")

    def across(source: str, target: str) -> None:
        if source == str(tmp_path / "weights"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        plain(source, target)

    monkeypatch.setattr(os, "link", across)
    assert store.give("k", tmp_path / "weights")
    assert store.get("k") == b"weights"


@pytest.mark.parametrize("name", ["a b", "a#b", "50%", "Köln", "it's", "a;b", "$HOME", "a\nb"])
def test_a_printed_command_is_one_that_a_shell_reads_back(name: str) -> None:
    assert shlex.split(f"fedhelp run {quoted(Path('/data') / name)}") == ["fedhelp", "run", f"/data/{name}"]
    assert shlex.split(own_command("fedhelp")) == [str(Path(sys.executable).with_name("fedhelp"))]


@pytest.mark.parametrize(("url", "folder"), [
    ("file:///data/a%23b%25", "/data/a#b%"), ("file:///data/a b", "/data/a b"), ("/data/a#b%23?c", "/data/a#b%23?c"),
    ("file:///data/K%C3%B6ln", "/data/Köln"),
])
def test_a_stores_folder_may_have_any_name(url: str, folder: str) -> None:
    assert folder_of(url) == Path(folder)


@pytest.mark.parametrize("url", ["file:///data/a#b", "file:///data/a?b"])
def test_a_file_url_that_would_be_cut_off_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"holds '[#?]' as %(23|3F)"):
        folder_of(url)


@pytest.mark.parametrize("name", ["p%41", "q?x=1"])
def test_a_folder_that_mlflow_would_misread_is_refused_before_training(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="MLflow cannot keep files below"):
        require_usable(f"sqlite:///{tmp_path / name / 'mlflow.db'}")


@pytest.mark.parametrize(("content", "words"), [(b"hello, I am a text\n" * 9, "is no SQLite file"), (None, "cannot be read")])
def test_a_database_that_is_none_is_found_without_mlflow(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "mlflow.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        require_usable(f"sqlite:///{path}")
