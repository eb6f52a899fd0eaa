"""Dispatch `process`: a silo's work as a process on this machine, for `make run`, simulations of a deployment, and tests.

Workers are forked from a zygote (zygote.py), so that PyTorch is imported once for all silos and rounds. Called by
supervisor.py; offers what request.Dispatcher asks.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import ConfigError
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest, exit_reason
from fedhelp_dispatch.zygote_client import ZygoteClient

_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
_TAIL = 20  # lines of a failed worker's log that are looked at


class ProcessWork:
    """One forked worker, which writes to `log`."""

    def __init__(self, zygote: ZygoteClient, arguments: list[str], log: Path) -> None:
        self._zygote = zygote
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._identity = zygote.fork({"argv": arguments, "log": str(log)})

    def outcome(self) -> Outcome | None:
        """See request.Work."""
        code = self._zygote.exit_code_of(self._identity)
        if code is None:
            return None
        return Outcome(exit_code=code, reason="" if code == 0 else exit_reason(code, self._log_tail()))

    def waiting(self) -> Waiting | None:
        """Never: a fork starts at once."""
        return None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that does not listen (a frozen process does not)."""
        self._zygote.signal(self._identity, signal.SIGTERM)
        force = threading.Timer(_GRACE, self._zygote.signal, [self._identity, signal.SIGKILL])
        force.daemon = True
        force.start()

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
        self._zygote = ZygoteClient()

    def start(self, request: WorkRequest) -> ProcessWork:
        """Fork a worker for `request`.

        Raises:
            ConfigError: the federation names no silo.yaml for this silo.
        """
        config = self._silo_configs[request.silo]
        if config is None:
            raise ConfigError(f"silo {request.silo!r}: dispatch 'process' needs silo_config, the path of its silo.yaml")
        return ProcessWork(self._zygote, [*request.arguments(), "--silo-config", str(config)], self._logs / f"{request.silo}.log")

    def close(self) -> None:
        """Kill this dispatcher's workers."""
        self._zygote.close()
