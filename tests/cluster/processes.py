"""Server processes of a test cluster: started with a log and a pid file each, ended by pid alone, even from another process.

Used by control_plane.py and node.py; `make cluster-down` ends what `make cluster` started through the pid files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class Processes:
    """Named server processes whose logs and pid files lie in `folder`; `outlive` keeps them when this process ends."""

    def __init__(self, folder: Path, *, outlive: bool = False) -> None:
        self.folder = folder
        self._outlive = outlive
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start `command`; its output goes to `<name>.log`, appended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env={**os.environ, **(environment or {})}, preexec_fn=None if self._outlive else _end_with_parent)
        self._started[name] = process
        self._pid_file(name).write_text(f"{process.pid} {_start_time(process.pid)}")

    def stop(self, name: str, seconds: float = 10) -> None:
        """End `name`: SIGTERM, then after `seconds` SIGKILL. Nothing happens when it has ended already."""
        pid = self.pid(name)
        if pid is not None:
            for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                if wait_for(lambda: self.pid(name) is None, patience):
                    break
        self._pid_file(name).unlink(missing_ok=True)
        self._started.pop(name, None)

    def stop_all(self) -> None:
        """End every process of this folder, the youngest first."""
        for file in sorted(self.folder.glob("*.pid"), key=lambda file: file.stat().st_mtime_ns, reverse=True):
            self.stop(file.stem)

    def pid(self, name: str) -> int | None:
        """The process id of `name` while it runs; a recycled id is not taken for it."""
        if name in self._started:
            return self._started[name].pid if self._started[name].poll() is None else None
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, started = self._pid_file(name).read_text().split()
            if _start_time(int(pid)) == started:
                return int(pid)
        return None

    def log(self, name: str) -> Path:
        """The log file of `name`."""
        return self.folder / f"{name}.log"

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Return when `ready()`; raise RuntimeError with the log's end when `name` ends first or `seconds` pass."""
        if wait_for(lambda: ready() or self.pid(name) is None, seconds) and self.pid(name) is not None:
            return
        state = "did not become ready" if self.pid(name) is not None else "ended"
        tail = self.log(name).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} {state} within {seconds:g} s of its start; the end of {self.log(name)}:\n{tail}")

    def _pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Whether `condition()` became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def host_address() -> str:
    """The address under which this machine's pods and neighbours reach it; 127.0.0.1 when it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.254", 9))  # a documentation address: nothing is sent, the kernel only picks the route
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _end_with_parent() -> None:
    """In the child: end when the tests are killed, so that no API server outlives them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # on SIGTERM an API server without its etcd lingers


def _start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot; an empty text when it does not run or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
