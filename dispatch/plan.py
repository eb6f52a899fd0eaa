"""What a run would create in the silos' clusters, made from the hospitals' templates as they are now. For `--dry-run`, and for preflight.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, get_args

from fedhelp_core.config.federation import Federation
from fedhelp_dispatch.cluster import Cluster
from fedhelp_dispatch.kubernetes import JobCarrier
from fedhelp_dispatch.manifestwork import ManifestWorkCarrier
from fedhelp_dispatch.refusals import ApiRefusal, explained
from fedhelp_dispatch.remote import Carrier
from fedhelp_dispatch.request import Action, request_for


class Clusters:
    """One connection for every kubeconfig context that is asked for; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str | None, Cluster] = {}

    def of(self, context: str | None) -> Cluster:
        """Raises ConfigError where there is no such context."""
        with self._lock:
            if context not in self._known:
                self._known[context] = Cluster(context)
            return self._known[context]


def carriers_of(federation: Federation) -> dict[str, Carrier]:
    """By kind of dispatch: what carries work out of this machine."""
    return {"kubernetes": JobCarrier(federation), "manifestwork": ManifestWorkCarrier(federation)}


def planned_objects(federation: Federation, run_id: str) -> Iterator[dict[str, Any]]:
    """Per silo outside this machine: the objects that check, (the first round's) training and evaluation would create.

    Raises:
        AccessDenied, NotFound, ConfigError: the silo's template cannot be read or used.
    """
    carriers, clusters = carriers_of(federation), Clusters()
    for silo in federation.silos:
        if (carrier := carriers.get(silo.dispatch.kind)) is None:
            continue
        cluster = clusters.of(silo.dispatch.context)
        for action in get_args(Action):
            first = 1 if action == "train" and silo.dispatch.residency == "round" else None
            try:
                yield carrier.build(cluster, request_for(federation, run_id, silo.name, action, first))
            except ApiRefusal as e:
                raise explained(e, doing="read the hospital's Job template", namespace=silo.namespace) from e
