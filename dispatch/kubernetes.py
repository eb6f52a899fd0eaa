"""Dispatch `kubernetes`: a silo's work as a Job in its own namespace, in this cluster or another one by kubeconfig context.

What the hub's account needs there: jobs create, get, list, watch, delete; cronjobs get; pods and their logs get, list;
events list; where Kueue is used, its workloads list, or a wait has no reason. Job and reasons are made by job.py and
reading.py (pure), the life of the object by remote.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import FedHelpError, JobFailed
from fedhelp_dispatch.job import CONTAINER, QUEUE_LABEL, Object, job_of
from fedhelp_dispatch.reading import JobReading, failure, newest, pull_fault, read_job, why_waiting
from fedhelp_dispatch.refusals import ASK_HOSPITAL, ApiRefusal, explained
from fedhelp_dispatch.remote import Look, Patience, RemoteDispatcher, Right
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_KUEUE_VERSIONS, _OF_JOB = ("v1beta2", "v1beta1"), "kueue.x-k8s.io/job-uid"
_TAIL = 20  # lines of a failed pod's log that are looked at
_TAIL_BYTES = 64 * 1024


class KubernetesDispatcher(RemoteDispatcher):
    """Jobs for the silos of one federation."""

    def __init__(self, federation: Federation, run_id: str, patience: Patience | None = None) -> None:
        super().__init__(federation, run_id, JobCarrier(federation), "Job", patience or Patience())


class JobCarrier:
    """See remote.Carrier."""

    collection_group = "batch/v1"
    resource = "jobs"
    ask = ASK_HOSPITAL
    rights: tuple[Right, ...] = (
        ("batch", "jobs", ("create", "get", "list", "watch", "delete")),
        ("", "pods", ("list",)), ("", "pods/log", ("get",)), ("", "events", ("list",)))

    def __init__(self, federation: Federation) -> None:
        self._silos = {silo.name: silo for silo in federation.silos}
        self._templates: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def namespace(self, silo: str) -> str:
        """The silo's own."""
        return self._silos[silo].namespace

    def build(self, cluster: Cluster, request: WorkRequest) -> dict[str, Any]:
        """The Job; the hospital's template is read once."""
        namespace = self.namespace(request.silo)
        template = self._templates.get(request.silo)
        if template is None:
            template = read_template(cluster, namespace, self._silos[request.silo].dispatch.template)
            with self._lock:
                self._templates[request.silo] = template
        return job_of(template, request, namespace=namespace)

    def rejected(self, request: WorkRequest) -> None:
        """The hospital may have changed its template meanwhile: the next attempt reads it again."""
        with self._lock:
            self._templates.pop(request.silo, None)

    def slim(self, found: Object) -> dict[str, Any]:
        """Without the pod template, which is most of a Job."""
        kept = ("name", "namespace", "uid", "labels", "annotations", "creationTimestamp", "deletionTimestamp")
        spec = found.get("spec", {})
        return {
            "metadata": {key: value for key, value in found["metadata"].items() if key in kept},
            "spec": {key: spec[key] for key in ("suspend", "activeDeadlineSeconds") if key in spec},
            "status": found.get("status", {}),
        }

    def read(self, found: Object) -> JobReading:
        """See remote.Carrier."""
        return read_job(found)

    def waits(self, found: Object) -> Waiting | None:
        """See remote.Carrier."""
        return why_waiting(found)

    def look(self, cluster: Cluster, found: Object) -> Look:
        """See `look_at`."""
        return look_at(cluster, found)

    def conclude(self, cluster: Cluster, found: Object, waited: Waiting | None) -> Outcome:
        """Ask for the last pod and the end of its log."""
        pods = pods_of(cluster, found)
        return failure(found, pods, log_tail(cluster, pods), waited)


def look_at(cluster: Cluster, job: Object) -> Look:
    """Ask for a Job's pods and, where it has none, for its events; of one that Kueue holds back for what Kueue says."""
    if job.get("spec", {}).get("suspend"):
        return Look(why_waiting(job, workloads=workloads_of(cluster, job)))
    pods = pods_of(cluster, job)
    events = [] if pods else events_of(cluster, job)
    fault = pull_fault(newest(pods)) if pods else None
    return Look(why_waiting(job, pods, events), Outcome(exit_code=JobFailed.exit_code, reason=fault) if fault is not None else None)


def read_template(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The hospital's CronJob.

    Raises:
        AccessDenied, NotFound: with what to ask the hospital for.
        ClusterUnavailable: try again.
    """
    try:
        found: dict[str, Any] = cluster.call("GET", f"/apis/batch/v1/namespaces/{namespace}/cronjobs/{name}")
    except ApiRefusal as e:
        raise _template_refused(cluster, namespace, e) from e
    return found


def _template_refused(cluster: Cluster, namespace: str, refusal: ApiRefusal) -> FedHelpError:
    """A missing template may be a missing namespace; who may not look into namespaces is told both."""
    if refusal.status == 404:
        try:
            cluster.call("GET", f"/api/v1/namespaces/{namespace}")
        except ApiRefusal as deeper:
            if deeper.status == 404:
                return explained(deeper, doing="use the namespace", namespace=namespace)
    return explained(refusal, doing="read the hospital's Job template", namespace=namespace)


def pods_of(cluster: Cluster, job: Object) -> list[dict[str, Any]]:
    """A Job's pods, finished ones too."""
    metadata = job["metadata"]
    query = {"labelSelector": f"batch.kubernetes.io/job-name={metadata['name']}"}
    found: list[dict[str, Any]] = cluster.call("GET", f"/api/v1/namespaces/{metadata['namespace']}/pods", query=query).get("items") or []
    return found


def events_of(cluster: Cluster, job: Object) -> list[dict[str, Any]]:
    """Why the Job controller could not create pods."""
    metadata = job["metadata"]
    query = {"fieldSelector": f"involvedObject.kind=Job,involvedObject.name={metadata['name']},reason=FailedCreate"}
    found: list[dict[str, Any]] = cluster.call("GET", f"/api/v1/namespaces/{metadata['namespace']}/events", query=query).get("items") or []
    return found


def workloads_of(cluster: Cluster, job: Object) -> list[dict[str, Any]] | None:
    """What Kueue made of a Job that waits in a queue; None where there is no queue, or we may not look."""
    metadata = job["metadata"]
    if QUEUE_LABEL not in metadata.get("labels", {}):
        return None
    for version in _KUEUE_VERSIONS:
        path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{metadata['namespace']}/workloads"
        query = {"labelSelector": f"{_OF_JOB}={metadata['uid']}"}
        try:
            found: list[dict[str, Any]] = cluster.call("GET", path, query=query).get("items") or []
        except ApiRefusal as e:
            if e.status != 404:
                return None
        else:
            return found
    return []


def log_tail(cluster: Cluster, pods: Sequence[Object]) -> list[str]:
    """The last lines of the newest pod; none where they are gone, or the kubelet does not answer."""
    if not pods:
        return []
    metadata = newest(pods)["metadata"]
    query = {"container": CONTAINER, "tailLines": str(_TAIL), "limitBytes": str(_TAIL_BYTES)}
    try:
        return cluster.text(f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/log", query).splitlines()
    except (ApiRefusal, FedHelpError):
        return []
