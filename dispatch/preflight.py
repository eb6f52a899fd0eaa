"""Whether the silos' clusters would take their work, without starting any. For `fedhelp check`.

Per silo: credentials, the hospital's template, a server-side dry run of the very object that check would create (which roles, quotas,
Pod Security and the hospital's admission policy judge like a real one), and the rights to follow it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import AccessDenied, FedHelpError
from fedhelp_dispatch.cluster import Cluster
from fedhelp_dispatch.plan import Clusters, carriers_of
from fedhelp_dispatch.refusals import ApiRefusal, explained, quota_exceeded
from fedhelp_dispatch.remote import Carrier
from fedhelp_dispatch.request import request_for
from fedhelp_dispatch.watch import Collection

_THREADS = 16
_RUN = "preflight"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def preflight(federation: Federation) -> dict[str, FedHelpError | None]:
    """For every silo outside this machine, in their order: what is in the way of its work, or None. Creates nothing."""
    carriers, clusters = carriers_of(federation), Clusters()
    silos = [silo for silo in federation.silos if silo.dispatch.kind in carriers]

    def problem(silo: SiloEntry) -> FedHelpError | None:
        try:
            _try_out(federation, silo.name, carriers[silo.dispatch.kind], clusters.of(silo.dispatch.context))
        except FedHelpError as e:
            return e
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((silo.name for silo in silos), pool.map(problem, silos), strict=True))


def _try_out(federation: Federation, silo: str, carrier: Carrier, cluster: Cluster) -> None:
    """Raises FedHelpError with what to do about it."""
    namespace = carrier.namespace(silo)
    path = Collection(carrier.collection_group, carrier.resource, "").path(namespace)
    try:
        body = carrier.build(cluster, request_for(federation, _RUN, silo, "check"))
        cluster.call("POST", path, query={"dryRun": "All"}, body=body)
    except ApiRefusal as e:
        if not quota_exceeded(e):  # else others are at work there now, and a run would wait for them
            raise explained(e, doing=f"create {carrier.resource}", namespace=namespace, ask=carrier.ask) from e
    if missing := list(_missing_rights(cluster, carrier, namespace)):
        raise AccessDenied(f"namespace {namespace!r} of {cluster.name}: the hub's account may not {', '.join(missing)}; {carrier.ask}")


def _missing_rights(cluster: Cluster, carrier: Carrier, namespace: str) -> Iterator[str]:
    """'list and watch jobs', and so on."""
    for group, resource, verbs in carrier.rights:
        if missing := [verb for verb in verbs if not _allowed(cluster, namespace, group, resource, verb)]:
            yield f"{' and '.join(missing)} {resource}"


def _allowed(cluster: Cluster, namespace: str, group: str, resource: str, verb: str) -> bool:
    name, _, subresource = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
    try:
        return bool(cluster.call("POST", _REVIEWS, body=review)["status"]["allowed"])
    except ApiRefusal as e:
        raise explained(e, doing="ask for its own rights", namespace=namespace) from e
