"""Dispatch `process`: a silo's work as a process on this machine, for `make run`, simulations of a deployment, and tests.

Workers are forked from a zygote (zygote.py), so that PyTorch is imported once for all silos and rounds. Called by
supervisor.py; offers what request.Dispatcher asks.
"""

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
from pathlib import Path

from fedhelp_components.dispatch.request import Outcome, Waiting, WorkRequest, exit_reason
from fedhelp_core.config import Federation
from fedhelp_core.errors import ConfigError, RetryableError

ZYGOTE_VARIABLE = "FEDHELP_ZYGOTE"
_START_TIMEOUT = 60.0  # seconds; binding the socket takes well under one
_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
_TAIL = 20  # lines of a failed worker's log that are looked at


class ZygoteProcess:
    """A zygote owned by this process: ends when this process does, or on `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedhelp-")
        self.path = str(Path(self._folder.name) / "zygote.sock")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedhelp_components.dispatch.zygote", "--socket", self.path], stdin=subprocess.PIPE)

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


class ProcessWork:
    """One forked worker."""

    def __init__(self, dispatcher: ProcessDispatcher, identity: int, log: Path) -> None:
        self._dispatcher = dispatcher
        self._identity = identity
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0

    def outcome(self) -> Outcome | None:
        """See request.Work."""
        code = self._dispatcher.exit_code_of(self._identity)
        if code is None:
            return None
        return Outcome(exit_code=code, reason="" if code == 0 else exit_reason(code, self._log_tail()))

    def waiting(self) -> Waiting | None:
        """Never: a fork starts at once."""
        return None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that does not listen (a frozen process does not)."""
        self._signal(signal.SIGTERM)
        force = threading.Timer(_GRACE, self._signal, [signal.SIGKILL])
        force.daemon = True
        force.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._dispatcher.exit_code_of(self._identity) is None:
            self._dispatcher.send({"id": self._identity, "signal": int(number)})

    def _log_tail(self) -> list[str]:
        if not self.log.exists():
            return []
        with self.log.open("rb") as handle:
            handle.seek(max(self._log_start, self.log.stat().st_size - 64 * 1024))
            return handle.read().decode(errors="replace").splitlines()[-_TAIL:]


class ProcessDispatcher:
    """Starts workers for the silos of one federation."""

    def __init__(self, federation: Federation, logs: Path) -> None:
        self._silo_configs = {silo.name: silo.dispatch.silo_config for silo in federation.silos}
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._next_identity = 0
        self._exits: dict[int, int] = {}
        self._connection: socket.socket | None = None
        self._own: ZygoteProcess | None = None

    def start(self, request: WorkRequest) -> ProcessWork:
        """Fork a worker for `request`.

        Raises:
            ConfigError: the federation names no silo.yaml for this silo.
        """
        config = self._silo_configs[request.silo]
        if config is None:
            raise ConfigError(f"silo {request.silo!r}: dispatch 'process' needs silo_config, the path of its silo.yaml")
        with self._lock:
            self._next_identity += 1
            identity = self._next_identity
        work = ProcessWork(self, identity, self._logs / f"{request.silo}.log")
        self.send({"id": identity, "argv": [*request.arguments(), "--silo-config", str(config)], "log": str(work.log)})
        return work

    def exit_code_of(self, identity: int) -> int | None:
        """None while the worker runs."""
        return self._exits.get(identity)

    def send(self, message: dict[str, object]) -> None:
        """One line to the zygote, which is started or found first."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
                threading.Thread(target=self._listen, args=(self._connection,), daemon=True, name="zygote-answers").start()
            with contextlib.suppress(OSError):  # the listening thread sees the same end and reports every worker as killed
                self._connection.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Kill this dispatcher's workers."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                self._connection.close()
                self._connection = None
            if self._own is not None:
                self._own.close()
                self._own = None

    def _connect(self) -> socket.socket:
        """A connection to the run's zygote, or where that is gone or there is none, to one of our own."""
        shared = _connected(os.environ.get(ZYGOTE_VARIABLE, ""))
        if shared is not None:
            return shared
        if self._own is not None:
            self._own.close()
        self._own = ZygoteProcess()
        deadline = time.monotonic() + _START_TIMEOUT
        while self._own.alive() and time.monotonic() < deadline:
            if (own := _connected(self._own.path)) is not None:
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
                self._exits[answer["id"]] = answer["exit"]
        with self._lock:  # the zygote is gone, and all workers with it
            for identity in range(1, max(first, self._next_identity) + 1):
                self._exits.setdefault(identity, -int(signal.SIGKILL))
            if self._connection is connection:
                self._connection = None
                connection.close()


def _connected(path: str) -> socket.socket | None:
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
