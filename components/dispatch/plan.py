"""What a run would create in the silos' clusters, made from the hospitals' templates as they are now. For `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from fedhelp_components.dispatch.cluster import Cluster
from fedhelp_components.dispatch.kubernetes import JobCarrier
from fedhelp_components.dispatch.manifestwork import ManifestWorkCarrier
from fedhelp_components.dispatch.refusals import ApiRefusal, explained
from fedhelp_components.dispatch.remote import Carrier
from fedhelp_components.dispatch.request import Action, request_for
from fedhelp_core.config import Federation


def planned_objects(federation: Federation, run_id: str) -> Iterator[dict[str, Any]]:
    """Per silo outside this machine: the objects that check, (the first round's) training and evaluation would create.

    Raises:
        AccessDenied, NotFound, ConfigError: the silo's template cannot be read or used.
    """
    carriers: dict[str, Carrier] = {"kubernetes": JobCarrier(federation), "manifestwork": ManifestWorkCarrier(federation)}
    clusters: dict[str | None, Cluster] = {}
    for silo in federation.silos:
        if (carrier := carriers.get(silo.dispatch.kind)) is None:
            continue
        cluster = clusters.setdefault(silo.dispatch.context, Cluster(silo.dispatch.context))
        for action in get_args(Action):
            first = 1 if action == "train" and silo.dispatch.residency == "round" else None
            try:
                yield carrier.build(cluster, request_for(federation, run_id, silo.name, action, first))
            except ApiRefusal as e:
                raise explained(e, doing="read the hospital's Job template", namespace=silo.namespace) from e
