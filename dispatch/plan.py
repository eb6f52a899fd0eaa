"""What a run would create in the silos' clusters, made from the hospitals' templates as they are now. For `--dry-run`."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

from fedhelp_core.config.federation import Federation
from fedhelp_dispatch.carrier import carrier_of
from fedhelp_dispatch.cluster import Clusters
from fedhelp_dispatch.refusals import ApiRefusal, refusal_error
from fedhelp_dispatch.request import Action, request_for


def planned_objects(federation: Federation, run_id: str) -> list[dict[str, Any]]:
    """Per silo outside this machine: the objects that check, (the first round's) training and evaluation would create.

    Raises:
        AccessDenied, NotFound, ConfigError: the silo's template cannot be read or used.
    """
    return asyncio.run(_planned(federation, run_id))


async def _planned(federation: Federation, run_id: str) -> list[dict[str, Any]]:
    planned = []
    async with Clusters() as clusters:
        for entry in federation.silos_in_clusters:
            carrier, cluster = carrier_of(entry.dispatch.kind), clusters.of(entry.dispatch.context)
            for action in get_args(Action):
                first = 1 if action == "train" and entry.dispatch.residency == "round" else None
                try:
                    planned.append(await carrier.build(cluster, request_for(federation, run_id, entry, action, first)))
                except ApiRefusal as e:
                    raise refusal_error(e, doing="read the hospital's Job template", namespace=entry.namespace) from e
    return planned
