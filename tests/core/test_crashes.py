"""How processes end: in sentences and codes, whatever happens; the trace of what nobody foresaw is in a file."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedhelp_core.crashes import as_error, crashes_kept_in
from fedhelp_core.errors import AccessDenied, ConfigError, Crashed, DataError, FedHelpError, NotFound, PermanentError, StorageFull
from fedhelp_core.printable import one_line
from fedhelp_core.processes import exit_code_of

FEDHELP = Path(sys.executable).with_name("fedhelp")


def fail_with(error: Exception) -> None:
    raise error


def trace_in(message: str) -> Path:
    found = re.search(r"the full trace is in (\S+?\.log)", message)
    assert found is not None, message
    return Path(found[1])


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHELP_LOGS", str(tmp_path / "logs"))


def test_an_error_that_nobody_foresaw_is_one_sentence_with_its_trace_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: fail_with(KeyError("patient\n7")), program="fedhelp check") == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedhelp check: error: fedhelp check met an error that it does not know (KeyError: 'patient\\n7'); the full trace is in ")
    log = trace_in(line)
    assert log.parent == tmp_path / "logs"
    assert "Traceback (most recent call last)" in log.read_text() and "fail_with" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0  # names of files may be of patients


def test_the_trace_lies_beside_the_work_where_that_takes_a_file(tmp_path: Path) -> None:
    with pytest.raises(Crashed) as caught, crashes_kept_in(tmp_path / "run", "run r"):
        raise RuntimeError("no such luck")
    assert trace_in(str(caught.value)).parent == tmp_path / "run"
    (tmp_path / "file").write_text("")
    with pytest.raises(Crashed) as caught, crashes_kept_in(tmp_path / "file" / "below", "run r"):
        raise RuntimeError("no such luck")
    assert trace_in(str(caught.value)).parent == tmp_path / "logs"


def test_errors_of_ours_pass_untouched_and_notes_stay() -> None:
    with pytest.raises(DataError, match=r"^as it was$"), crashes_kept_in(Path("/nowhere"), "run r"):
        raise DataError("as it was")
    error = ValueError("x")
    error.add_note("component check")
    assert as_error(error, "run r").__notes__ == ["component check"]


@pytest.mark.parametrize(("error", "kind", "words"), [
    (OSError(errno.ENOSPC, "No space left on device"), StorageFull, "no space left"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), StorageFull, "/data/x: no space left"),
    (OSError(errno.EFBIG, "File too large"), StorageFull, "no space left"),
    (PermissionError(errno.EACCES, "Permission denied", "/data/x"), AccessDenied, "/data/x: access refused"),
    (PermissionError(errno.EPERM, "Operation not permitted"), Crashed, "PermissionError"),  # of a connection
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/x"), NotFound, "/data/x: is not what is needed there"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "/data/x"), PermanentError, "/data/x: cannot be a path here"),
    (OSError(errno.EMFILE, "Too many open files"), ConfigError, "ulimit -n"),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Crashed, "ConnectionResetError"),
    (MemoryError(), Crashed, "(MemoryError)"),
])
def test_what_the_machine_refuses_has_its_own_code_and_remedy(error: Exception, kind: type[FedHelpError], words: str) -> None:
    found = as_error(error, "fedhelp check")
    assert type(found) is kind
    assert words in str(found)
    assert trace_in(str(found)).exists()


def test_a_message_is_one_line_without_control_characters_or_passwords() -> None:
    assert one_line("a\n b\x1b[31m s3://user:secret@host/x") == "a b\N{REPLACEMENT CHARACTER}[31m s3://host/x"
    assert len(one_line("x" * 1000)) == 300


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, errors="replace", env={**os.environ, **environment})


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_a_command_with_the_code_of_a_broken_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([FEDHELP, "compile", "-o", tmp_path / "x.yaml"], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    assert (tmp_path / "x.yaml").exists()


@pytest.mark.slow
def test_an_output_that_is_full_is_told_as_such() -> None:
    done = shell(f"{sys.executable} -c 'import sys; from fedhelp_core.processes import exit_code_of;"
                 f" sys.exit(exit_code_of(lambda: print(\"x\" * 100000), program=\"p\"))' > /dev/full")
    assert done.returncode == 32, done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [
    "check FOLDER", "check BROKEN-LINK", "check LOOP", "check BINARY", "check /dev/null", "check $'no\\xffsuch'", "run --dry-run BINARY",
    "run FOLDER",
    "promote BINARY", "rollback FOLDER", "softlabels show BINARY", "softlabels show FOLDER", "simulate --dry-run BINARY", "jobs BINARY",
    "compile --federation BINARY", "compile -o /proc/nothing/x.yaml", "compile -o FOLDER", "register BINARY --endpoint http://127.0.0.1:9",
    "submit BINARY --endpoint http://127.0.0.1:9 --dry-run", "data phantom melanoma BINARY", "data phantom melanoma /proc/nothing",
    "data phantom x FOLDER",
    "run --demo BINARY --dry-run",
])
def test_files_that_are_not_what_a_command_expects_end_in_a_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)) * 8)
    names = {"FOLDER": "folder", "BROKEN-LINK": "broken", "LOOP": "loop", "BINARY": "binary.yaml"}
    for word, name in names.items():
        command = command.replace(word, str(tmp_path / name))
    done = shell(f"cd {tmp_path} && {FEDHELP} {command}")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2 or 10 <= done.returncode < 40, (done.returncode, done.stderr)
    assert done.stderr.strip()
