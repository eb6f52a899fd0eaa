"""What a killed pytest leaves behind ends by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HANGS = """
import subprocess, time
from pathlib import Path

def test_hangs():
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(__file__).with_name("child").write_text(str(child.pid))
    {then}
"""


def started(folder: Path, then: str) -> tuple[subprocess.Popen[bytes], int]:
    """A pytest over a test that starts a process and goes on with `then`; and that process."""
    (folder / "test_it.py").write_text(HANGS.format(then=then))
    root = Path(__file__).parents[1]
    pytest_itself = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.watchdog", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL)
    while not (folder / "child").exists() or not (folder / "child").read_text():
        assert pytest_itself.poll() is None or then == "pass"
        time.sleep(0.05)
    return pytest_itself, int((folder / "child").read_text())


def is_there(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_pytest_takes_what_it_started_along(tmp_path: Path) -> None:
    pytest_itself, child = started(tmp_path, "time.sleep(600)")
    assert is_there(child)
    pytest_itself.send_signal(signal.SIGKILL)
    pytest_itself.wait()
    while is_there(child):
        time.sleep(0.05)


def test_a_pytest_that_ends_kills_nothing(tmp_path: Path) -> None:
    pytest_itself, child = started(tmp_path, "pass")
    assert pytest_itself.wait() == 0
    assert is_there(child)
    os.kill(child, signal.SIGKILL)
