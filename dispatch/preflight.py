"""Whether the silos' clusters would take their work, without starting any. For `fedhelp check`.

Per silo: credentials, the hospital's template, a server-side dry run of the very object that check would create (which roles, quotas,
Pod Security and the hospital's admission policy judge like a real one), and the rights to follow it afterwards.
"""

from __future__ import annotations

import asyncio

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import AccessDenied, FedHelpError
from fedhelp_dispatch.carrier import Carrier, carrier_of
from fedhelp_dispatch.cluster import Cluster, Clusters
from fedhelp_dispatch.refusals import ApiRefusal, quota_exceeded, refusal_error
from fedhelp_dispatch.request import WorkRequest, request_for

_RUN = "preflight"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def preflight(federation: Federation) -> dict[str, FedHelpError | None]:
    """For every silo outside this machine, in their order: what is in the way of its work, or None. Creates nothing."""
    return asyncio.run(_preflight(federation))


async def _preflight(federation: Federation) -> dict[str, FedHelpError | None]:
    async with Clusters() as clusters:

        async def problem(entry: SiloEntry) -> FedHelpError | None:
            try:
                await _try_out(request_for(federation, _RUN, entry, "check"), carrier_of(entry.dispatch.kind), clusters.of(entry.dispatch.context))
            except FedHelpError as e:
                return e
            return None

        found = await asyncio.gather(*map(problem, federation.silos_in_clusters))
    return dict(zip((entry.name for entry in federation.silos_in_clusters), found, strict=True))


async def _try_out(request: WorkRequest, carrier: Carrier, cluster: Cluster) -> None:
    """Raises FedHelpError with what to do about it."""
    namespace = carrier.namespace(request.entry)
    try:
        body = await carrier.build(cluster, request)
        await cluster.call("POST", carrier.path(namespace), query={"dryRun": "All"}, body=body)
    except ApiRefusal as e:
        if not quota_exceeded(e):  # else others are at work there now, and a run would wait for them
            raise refusal_error(e, doing=f"create {carrier.resource}", namespace=namespace, ask=carrier.ask) from e
    missing = [
        f"{' and '.join(refused)} {resource}" for group, resource, verbs in carrier.rights
        if (refused := [verb for verb in verbs if not await _allowed(cluster, namespace, group, resource, verb)])]
    if missing:
        raise AccessDenied(f"namespace {namespace!r} of {cluster.name}: the hub's account may not {', '.join(missing)}; {carrier.ask}")


async def _allowed(cluster: Cluster, namespace: str, group: str, resource: str, verb: str) -> bool:
    name, _, subresource = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
    try:
        return bool((await cluster.call("POST", _REVIEWS, body=review))["status"]["allowed"])
    except ApiRefusal as e:
        raise refusal_error(e, doing="ask for its own rights", namespace=namespace) from e
