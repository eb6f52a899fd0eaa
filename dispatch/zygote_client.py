"""Talking to a zygote (zygote.py): start one, ask it for forked processes, hear how they end. Called by process.py and forked.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedhelp_core.errors import RetryableError

ZYGOTE_VARIABLE = "FEDHELP_ZYGOTE"
_START_TIMEOUT = 60.0  # seconds; binding the socket takes well under one


class ZygoteProcess:
    """A zygote owned by this process: ends when this process does, or on `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedhelp-")
        self.path = str(Path(self._folder.name) / "zygote.sock")
        with _interrupts_kept_back():  # until the zygote ignores them: Ctrl-C goes to all processes of the terminal
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedhelp_dispatch.zygote", "--socket", self.path], stdin=subprocess.PIPE)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill it and its workers."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class ZygoteClient:
    """A connection to the run's zygote, or where there is none, to one of our own. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_identity = 0
        self._exits: dict[int, int] = {}
        self._ended = threading.Condition()  # notified whenever `_exits` grows
        self._connection: socket.socket | None = None
        self._own: ZygoteProcess | None = None

    def fork(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Have a process forked as zygote.py's `message` says, which may be given open files; what it is called from now on."""
        with self._lock:
            self._next_identity += 1
            identity = self._next_identity
        self._send({"id": identity, **message}, descriptors)
        return identity

    def signal(self, identity: int, number: signal.Signals) -> None:
        """Signal the process; nothing where it has ended."""
        if self.exit_code_of(identity) is None:
            self._send({"id": identity, "signal": int(number)})

    def exit_code_of(self, identity: int) -> int | None:
        """None while the process runs; negative: ended by that signal."""
        return self._exits.get(identity)

    def wait(self, identity: int, timeout: float | None = None) -> int | None:
        """As `exit_code_of`, once the process has ended or `timeout` seconds are over."""
        with self._ended:
            self._ended.wait_for(lambda: identity in self._exits, timeout)
        return self.exit_code_of(identity)

    def close(self) -> None:
        """Kill what was forked for us."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                self._connection.close()
                self._connection = None
            if self._own is not None:
                self._own.close()
                self._own = None

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """One line to the zygote, which is started or found first."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
                threading.Thread(target=self._listen, args=(self._connection,), daemon=True, name="zygote-answers").start()
            with contextlib.suppress(OSError):  # the listening thread sees the same end and reports every process as killed
                sent = socket.send_fds(self._connection, [line], descriptors) if descriptors else 0
                self._connection.sendall(line[sent:])

    def _connect(self) -> socket.socket:
        """A connection to the run's zygote, or where that is gone or there is none, to one of our own."""
        shared = connected(os.environ.get(ZYGOTE_VARIABLE, ""))
        if shared is not None:
            return shared
        if self._own is not None:
            self._own.close()
        self._own = ZygoteProcess()
        deadline = time.monotonic() + _START_TIMEOUT
        while self._own.alive() and time.monotonic() < deadline:
            if (own := connected(self._own.path)) is not None:
                return own
            time.sleep(0.01)
        raise RetryableError(f"the process that forks workers did not start within {_START_TIMEOUT:.0f} s; look at its messages above")

    def _listen(self, connection: socket.socket) -> None:
        received = b""
        first = self._next_identity
        while True:
            try:
                content = connection.recv(65536)
            except OSError:
                content = b""
            if not content:
                break
            *lines, received = (received + content).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                self._note({answer["id"]: answer["exit"]})
        with self._lock:  # the zygote is gone, and all that it forked with it
            self._note({identity: -int(signal.SIGKILL) for identity in range(1, max(first, self._next_identity) + 1)})
            if self._connection is connection:
                self._connection = None
                connection.close()

    def _note(self, exits: dict[int, int]) -> None:
        with self._ended:
            for identity, code in exits.items():
                self._exits.setdefault(identity, code)
            self._ended.notify_all()


@contextlib.contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """SIGINT is kept from this thread for a while, and from a process that it starts until that one takes it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connected(path: str) -> socket.socket | None:
    """A connection to the Unix socket at `path`; None where nobody listens."""
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection
