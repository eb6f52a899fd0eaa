"""Silos, each started its own way: as a process of this machine, or as an object in a cluster."""

from __future__ import annotations

from pathlib import Path

from fedhelp_dispatch.request import Dispatcher, Work, WorkRequest


class RoutingDispatcher:
    """Makes the dispatchers that silos need, each when its first silo is started (their imports take seconds)."""

    def __init__(self, run_id: str, logs: Path) -> None:
        self._run_id = run_id
        self._logs = logs
        self._dispatchers: dict[bool, Dispatcher] = {}  # by whether it starts work in clusters

    def start(self, request: WorkRequest) -> Work:
        """See request.Dispatcher."""
        in_cluster = request.entry.dispatch.how.carrier is not None
        if in_cluster not in self._dispatchers:
            self._dispatchers[in_cluster] = self._remote() if in_cluster else self._process()
        return self._dispatchers[in_cluster].start(request)

    def close(self) -> None:
        """See request.Dispatcher."""
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    def _process(self) -> Dispatcher:
        from fedhelp_dispatch.process import ProcessDispatcher

        return ProcessDispatcher(self._logs)

    def _remote(self) -> Dispatcher:
        from fedhelp_dispatch.remote import RemoteDispatcher

        return RemoteDispatcher(self._run_id)
