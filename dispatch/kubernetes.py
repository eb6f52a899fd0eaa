"""Dispatch `kubernetes`: a silo's work as a Job in its own namespace, in this cluster or another one by kubeconfig context.

Jobs are created and deleted in create_and_delete.py.

What the hub's account needs there: jobs create, get, list, watch, delete; cronjobs get; pods and their logs get, list;
events list; where Kueue is used, its workloads list, or a wait has no reason. Job and reasons are made by job.py and
reading.py (pure), the life of the object by lifecycle.py, driven by remote.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.errors import FedHelpError, JobFailed
from fedhelp_dispatch.carrier import Carrier, Right
from fedhelp_dispatch.job import CONTAINER, QUEUE_LABEL, Object, job_of
from fedhelp_dispatch.lifecycle import Event, looked
from fedhelp_dispatch.reading import failure, newest, pull_fault, why_waiting
from fedhelp_dispatch.refusals import ASK_HOSPITAL, ApiRefusal, refusal_error
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_KUEUE_VERSIONS, _OF_JOB = ("v1beta2", "v1beta1"), "kueue.x-k8s.io/job-uid"
_TAIL = 20  # lines of a failed pod's log that are looked at
_TAIL_BYTES = 64 * 1024


class JobCarrier(Carrier):
    """See carrier.Carrier."""

    kind = "Job"
    group = "batch/v1"
    resource = "jobs"
    ask = ASK_HOSPITAL
    rights: tuple[Right, ...] = (
        ("batch", "jobs", ("create", "get", "list", "watch", "delete")),
        ("", "pods", ("list",)), ("", "pods/log", ("get",)), ("", "events", ("list",)))

    def __init__(self) -> None:
        self._templates: dict[tuple[str, str], dict[str, Any]] = {}  # by namespace and name: read once, not once a round

    def namespace(self, entry: SiloEntry) -> str:
        """The silo's own."""
        return entry.namespace

    async def build(self, cluster: Cluster, request: WorkRequest) -> dict[str, Any]:
        """The Job; the hospital's template is read once."""
        key = namespace, name = request.entry.namespace, request.entry.dispatch.template
        if key not in self._templates:
            self._templates[key] = await read_template(cluster, namespace, name)
        return job_of(self._templates[key], request, namespace=namespace)

    def rejected(self, request: WorkRequest) -> None:
        """The hospital may have changed its template meanwhile: the next attempt reads it again."""
        self._templates.pop((request.entry.namespace, request.entry.dispatch.template), None)

    def slim_spec(self, spec: Object) -> dict[str, Any]:
        """Without the pod template, which is most of a Job."""
        return {key: spec[key] for key in ("suspend", "activeDeadlineSeconds") if key in spec}

    def reported(self, found: Object) -> Object:
        """It is one."""
        return found

    def waits(self, found: Object) -> Waiting | None:
        """See carrier.Carrier."""
        return why_waiting(found)

    async def look(self, cluster: Cluster, found: Object) -> Event:
        """Ask for its pods and, where it has none, for its events; of one that Kueue holds back for what Kueue says."""
        if found.get("spec", {}).get("suspend"):
            return looked(found, why_waiting(found, workloads=await workloads_of(cluster, found)))
        pods = await pods_of(cluster, found)
        events = [] if pods else await events_of(cluster, found)
        fault = pull_fault(newest(pods)) if pods else None
        return looked(found, why_waiting(found, pods, events), None if fault is None else Outcome(exit_code=JobFailed.exit_code, reason=fault))

    async def conclude(self, cluster: Cluster, found: Object, waited: Waiting | None) -> Outcome:
        """Ask for the last pod and the end of its log."""
        pods = await pods_of(cluster, found)
        return failure(found, pods, await log_tail(cluster, pods), waited)

    def job(self, found: Object) -> Object:
        """It is one."""
        return found


async def read_template(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The hospital's CronJob.

    Raises:
        AccessDenied, NotFound: with what to ask the hospital for.
        ClusterUnavailable: try again.
    """
    try:
        found: dict[str, Any] = await cluster.call("GET", f"/apis/batch/v1/namespaces/{namespace}/cronjobs/{name}")
    except ApiRefusal as e:
        raise await _template_refused(cluster, namespace, e) from e
    return found


async def _template_refused(cluster: Cluster, namespace: str, refusal: ApiRefusal) -> FedHelpError:
    """A missing template may be a missing namespace; who may not look into namespaces is told both."""
    if refusal.status == 404:
        try:
            await cluster.call("GET", f"/api/v1/namespaces/{namespace}")
        except ApiRefusal as deeper:
            if deeper.status == 404:
                return refusal_error(deeper, doing="use the namespace", namespace=namespace)
    return refusal_error(refusal, doing="read the hospital's Job template", namespace=namespace)


async def pods_of(cluster: Cluster, job: Object) -> list[dict[str, Any]]:
    """A Job's pods, finished ones too."""
    return await _beside(cluster, job, "/api/v1", "pods", {"labelSelector": f"batch.kubernetes.io/job-name={job['metadata']['name']}"})


async def events_of(cluster: Cluster, job: Object) -> list[dict[str, Any]]:
    """Why the Job controller could not create pods."""
    about = f"involvedObject.kind=Job,involvedObject.name={job['metadata']['name']},reason=FailedCreate"
    return await _beside(cluster, job, "/api/v1", "events", {"fieldSelector": about})


async def workloads_of(cluster: Cluster, job: Object) -> list[dict[str, Any]] | None:
    """What Kueue made of a Job that waits in a queue; None where there is no queue, or we may not look."""
    if QUEUE_LABEL not in job["metadata"].get("labels", {}):
        return None
    for version in _KUEUE_VERSIONS:
        try:
            return await _beside(
                cluster, job, f"/apis/kueue.x-k8s.io/{version}", "workloads", {"labelSelector": f"{_OF_JOB}={job['metadata']['uid']}"})
        except ApiRefusal as e:
            if e.status != 404:
                return None
    return []


async def _beside(cluster: Cluster, job: Object, api: str, resource: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """Other objects in a Job's namespace."""
    found = await cluster.call("GET", f"{api}/namespaces/{job['metadata']['namespace']}/{resource}", query=query)
    return list(found.get("items") or [])


async def log_tail(cluster: Cluster, pods: Sequence[Object]) -> list[str]:
    """The last lines of the newest pod; none where they are gone, or the kubelet does not answer."""
    if not pods:
        return []
    metadata = newest(pods)["metadata"]
    query = {"container": CONTAINER, "tailLines": str(_TAIL), "limitBytes": str(_TAIL_BYTES)}
    try:
        return (await cluster.text(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log", query)).splitlines()
    except (ApiRefusal, FedHelpError):
        return []
