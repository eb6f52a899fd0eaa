"""A process that has imported PyTorch once and forks in milliseconds what needs it. For runs on one machine.

    python -m fedhelp_dispatch.zygote --socket /tmp/x/zygote.sock

`fedhelp run` starts one for all components of a run ($FEDHELP_ZYGOTE names its socket); a component without one starts its
own. One JSON object a line, both ways:

    -> {"id": 7, "argv": ["train", "--run", ...], "log": "/path/silo.log"}        fork a silo's worker
    -> {"id": 8, "component": "evaluation", "arguments": {...}, ...}              fork a component's body (forked.py), which
                                                                                writes to the two descriptors sent along
    -> {"id": 7, "signal": 15}                                                  signal it
    <- {"id": 7, "exit": 0}                                                      it ended (negative: by that signal)

A connection's workers are killed when it closes, all workers when the zygote ends, and the zygote when its owner does (its
standard input closes), so that nothing outlives `kill -9` of anyone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_PR_SET_PDEATHSIG = 1
_QUIET = 1.0  # seconds without a request and without workers, after which the zygote uses the time; longer than from one task to the next


@dataclass
class _Connection:
    socket: socket.socket
    received: bytes = b""
    descriptors: list[int] = field(default_factory=list)
    """Standard output and error of the components asked for, in their order."""
    workers: dict[int, int] = field(default_factory=dict)
    """request id -> pid"""


class Zygote:
    """The server; `serve` returns when the owner is gone."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._owner_spoke)
        self._child_read, self._child_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._child_read, selectors.EVENT_READ, self._reap)
        self._connections: dict[int, _Connection] = {}
        self._running = True
        self._warm = False
        signal.set_wakeup_fd(self._child_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the owner's, and reaches the workers by themselves
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the owner has kept it back until here

    def serve(self) -> None:
        """Answer until standard input closes; then kill every worker."""
        while self._running:
            events = self._selector.select(None if self._warm else _QUIET)
            for key, _ in events:
                key.data(key.fileobj)
            if not events and not any(connection.workers for connection in self._connections.values()):
                self._warm_up()  # nobody waits to hear that a worker ended
        for connection in list(self._connections.values()):
            self._drop(connection)

    def _warm_up(self) -> None:
        """What only training needs, imported while the hub is busy otherwise: an optimizer's first step imports these 900 modules."""
        self._warm = True
        import torch._dynamo  # noqa: F401

    def _owner_spoke(self, descriptor: Any) -> None:
        if not os.read(descriptor, 4096):
            self._running = False

    def _accept(self, listener: Any) -> None:
        accepted, _ = listener.accept()
        self._connections[accepted.fileno()] = _Connection(accepted)
        self._selector.register(accepted, selectors.EVENT_READ, self._receive)

    def _receive(self, source: Any) -> None:
        connection = self._connections[source.fileno()]
        try:
            content, descriptors, _, _ = socket.recv_fds(source, 65536, 8)
            connection.descriptors.extend(descriptors)
        except ConnectionError:
            content = b""
        if not content:
            self._drop(connection)
            return
        *lines, connection.received = (connection.received + content).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "argv" in message:
                connection.workers[message["id"]] = self._fork_worker(message["argv"], message["log"])
            elif "component" in message:
                connection.workers[message["id"]] = self._fork_component(message, connection)
            elif message["id"] in connection.workers:
                os.kill(connection.workers[message["id"]], message["signal"])

    def _drop(self, connection: _Connection) -> None:
        """The other side is gone: its workers must not go on."""
        for pid in connection.workers.values():
            os.kill(pid, signal.SIGKILL)
        for descriptor in connection.descriptors:
            os.close(descriptor)
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()

    def _reap(self, descriptor: Any) -> None:
        os.read(descriptor, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._report(pid, os.waitstatus_to_exitcode(status))

    def _report(self, pid: int, exit_code: int) -> None:
        for connection in self._connections.values():
            for identity, worker in list(connection.workers.items()):
                if worker == pid:
                    del connection.workers[identity]
                    answer = json.dumps({"id": identity, "exit": exit_code}).encode() + b"\n"
                    with contextlib.suppress(ConnectionError):  # it is dropped when its socket reads as closed
                        connection.socket.sendall(answer)
                    return

    def _fork_worker(self, argv: list[str], log: str) -> int:
        if argv[:1] == ["train"]:
            self._warm_up()  # where no quiet moment came before: once here instead of in every worker

        def work() -> int:
            from fedhelp_dispatch.worker import main

            return main(argv)

        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            return self._fork((descriptor, descriptor), work)
        finally:
            os.close(descriptor)

    def _fork_component(self, message: dict[str, Any], connection: _Connection) -> int:
        output, error, *connection.descriptors = connection.descriptors

        def work() -> int:
            from fedhelp_components.forked import body

            return body(message)

        try:
            return self._fork((output, error), work)
        finally:
            os.close(output)
            os.close(error)
            if not self._warm:
                self._warm_up()  # meanwhile: it works for seconds, and training comes next

    def _fork(self, outputs: tuple[int, int], work: Callable[[], int]) -> int:
        """The pid of a process that ends with `work`'s exit code; `outputs` are its standard output and error."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._become_worker(outputs)
            code = work()
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _become_worker(self, outputs: tuple[int, int]) -> None:
        parent = os.getppid()
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._listener.close()
        self._selector.close()
        for connection in self._connections.values():
            connection.socket.close()
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        signal.signal(signal.SIGINT, self._on_interrupt)  # last: what it raises belongs into the worker's own log
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def die_with_parent() -> None:
    """Linux: SIGKILL for this process when the thread that started it ends. Elsewhere: nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Import what workers need, then serve."""
    parser = argparse.ArgumentParser(prog="python -m fedhelp_dispatch.zygote", description=__doc__)
    parser.add_argument("--socket", required=True, help="path of the Unix socket to listen on")
    path = parser.parse_args().socket
    zygote = Zygote(path)
    import fedhelp_dispatch.worker  # noqa: F401 - after bind, so that callers can connect while this imports

    zygote.serve()
    with contextlib.suppress(OSError):  # the owner does this too, unless it was killed
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
