"""Dispatch `process`: a silo's work as a process on this machine, for `fedhelp run`, simulations of a deployment, and tests.

Workers are forked by Python's fork server, which has imported PyTorch once for all silos and rounds (docs/decisions/0016). It ends with
this process, and every worker with it, however that ends. Called by supervisor.py; offers what request.Dispatcher asks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from fedhelp_core.errors import ConfigError
from fedhelp_core.processes import die_with_parent
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest, exit_reason

_PRELOADED = ["fedhelp_dispatch.worker", "torch._dynamo"]  # the second: 900 modules that an optimizer's first step would import in each worker
_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
_TAIL = 20  # lines of a failed worker's log that are looked at


class ProcessWork:
    """One forked worker, which writes to `log`."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._process = _context().Process(target=_work, args=(list(arguments), str(log)), daemon=True)
        self._process.start()

    def outcome(self) -> Outcome | None:
        """See request.Work."""
        code = self._process.exitcode
        if code is None:
            return None
        if code == 0:
            return Outcome(exit_code=code)
        return Outcome(exit_code=code, reason=exit_reason(code, self._log_tail()), where=f"what it said is in {self.log}")

    def waiting(self) -> Waiting | None:
        """Never: a fork starts at once."""
        return None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that does not listen (a frozen process does not)."""
        self._process.terminate()
        force = threading.Timer(_GRACE, self._process.kill)
        force.daemon = True
        force.start()

    def end(self) -> None:
        """Kill it, and wait till it is gone."""
        self._process.kill()
        self._process.join()

    def _log_tail(self) -> list[str]:
        if not self.log.exists():
            return []
        with self.log.open("rb") as handle:
            handle.seek(max(self._log_start, self.log.stat().st_size - 64 * 1024))
            return handle.read().decode(errors="replace").splitlines()[-_TAIL:]


class ProcessDispatcher:
    """Starts workers, each with the silo.yaml that its request names."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[ProcessWork] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, request: WorkRequest) -> ProcessWork:
        """Fork a worker for `request`.

        Raises:
            ConfigError: the federation names no silo.yaml for this silo.
        """
        config = request.entry.dispatch.silo_config
        if config is None:
            raise ConfigError(f"silo {request.silo!r}: dispatch 'process' needs silo_config, the path of its silo.yaml")
        with _interrupts_kept_back():  # else a worker could be there that `close` does not know
            work = ProcessWork([*request.arguments(), "--silo-config", str(config)], self._logs / f"{request.silo}.log")
            self._started = [one for one in self._started if one.outcome() is None] + [work]
        return work

    def close(self) -> None:
        """Kill this dispatcher's workers."""
        for work in self._started:
            work.end()


def start_ahead() -> None:
    """Have the fork server import PyTorch from now on, while the caller does something else."""
    with _interrupts_kept_back():
        _context()
        forkserver.ensure_running()


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _work(arguments: list[str], log: str) -> None:
    """In the forked process."""
    die_with_parent()
    # The fork server ends when nobody holds this pipe any more: held here, it would outlive a killed hub as long as a worker does.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # last: what it raises belongs into the worker's own log
    from fedhelp_dispatch.worker import main

    sys.exit(main(arguments, own_machine=True))


@contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """Ctrl-C goes to all processes of the terminal: the fork server never hears it, and a worker not before it can say so in its own log.

    Here it is heard at the end, and SIGTERM too.
    """
    resource_tracker.ensure_running()  # the fork server starts it else, and it lets the signal through again when it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    here = threading.current_thread() is threading.main_thread()  # where Python runs handlers, whichever thread the system has chosen
    heard: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for again in heard:
            signal.raise_signal(again)
