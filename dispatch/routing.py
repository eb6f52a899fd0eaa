"""One federation's silos, each started its own way: as processes, in Kubernetes, through a hospital's agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedhelp_core.config.federation import Federation
from fedhelp_dispatch.request import Dispatcher, Work, WorkRequest


class RoutingDispatcher:
    """Makes the dispatchers that a federation's silos need, each when its first silo is started (their imports take seconds)."""

    def __init__(self, federation: Federation, run_id: str, logs: Path) -> None:
        self._kinds = {silo.name: silo.dispatch.kind for silo in federation.silos}
        self._makers: dict[str, Callable[[], Dispatcher]] = {
            "process": lambda: _process(federation, logs),
            "kubernetes": lambda: _kubernetes(federation, run_id),
            "manifestwork": lambda: _manifestwork(federation, run_id),
        }
        self._dispatchers: dict[str, Dispatcher] = {}

    def start(self, request: WorkRequest) -> Work:
        """See request.Dispatcher."""
        kind = self._kinds[request.silo]
        if kind not in self._dispatchers:
            self._dispatchers[kind] = self._makers[kind]()
        return self._dispatchers[kind].start(request)

    def close(self) -> None:
        """See request.Dispatcher."""
        for dispatcher in self._dispatchers.values():
            dispatcher.close()


def _process(federation: Federation, logs: Path) -> Dispatcher:
    from fedhelp_dispatch.process import ProcessDispatcher

    return ProcessDispatcher(federation, logs)


def _kubernetes(federation: Federation, run_id: str) -> Dispatcher:
    from fedhelp_dispatch.kubernetes import KubernetesDispatcher

    return KubernetesDispatcher(federation, run_id)


def _manifestwork(federation: Federation, run_id: str) -> Dispatcher:
    from fedhelp_dispatch.manifestwork import ManifestWorkDispatcher

    return ManifestWorkDispatcher(federation, run_id)
