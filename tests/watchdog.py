"""A pytest that is killed leaves no process behind: components, model servers and whole clusters that its tests started end with it.

Each pytest process marks the environment that its children inherit, and starts a watchdog in a session of its own. Where the pytest ends without a
word, the watchdog kills whatever carries the mark. conftest.py imports the two hooks; `pytest -p tests.watchdog` takes them too. Linux alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

MARK = "FEDHELP_STARTED_BY_TEST_SESSION"
_DONE = b"."
_watchdogs: list[subprocess.Popen[bytes]] = []


def pytest_sessionstart() -> None:
    """Mark what is started from now on, and watch over this process."""
    if not Path("/proc/self/environ").exists():
        return
    mark = os.environ[MARK] = uuid.uuid4().hex  # an xdist worker has its own: it may be killed alone
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    _watchdogs.append(subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), mark], stdin=subprocess.PIPE, env=unmarked, start_new_session=True))


def pytest_sessionfinish() -> None:
    """The session came to its end: fixtures have ended what they started."""
    while _watchdogs:
        with suppress(BrokenPipeError):
            _watchdogs.pop().communicate(_DONE, timeout=30)


def _carrying(mark: str) -> list[int]:
    """Processes that inherited `mark`."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone, or another user's
            if wanted in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def _main(mark: str) -> None:
    if sys.stdin.buffer.read(1) == _DONE:
        return
    while running := _carrying(mark):  # one may start another while it is looked for
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


if __name__ == "__main__":
    _main(sys.argv[1])
