"""Dispatch `manifestwork`: the same Job for a hospital that only dials out, carried by Open Cluster Management.

The hub puts a ManifestWork into the hospital's namespace on the OCM hub; the hospital's agent fetches it, creates the Job in
the silo's own namespace, and reports the fields of its status that feedback rules name. Nothing dials into the hospital, so
the hub cannot read the template there: the hospital exports its CronJob once (`kubectl get cronjob fedhelp-worker -o yaml`)
and again after each upgrade of its chart, and the federation names that file (dispatch.job_template). An outdated one is
refused by the hospital's own admission policy, whose message comes back with the agent's report. What does not come back is
the scheduler's reason and the log: those are for the hospital's eyes. The object is created and deleted in create_and_delete.py.

On the OCM hub the account needs, in the hospital's namespace: manifestworks create, get, list, watch, delete.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.errors import AccessDenied
from fedhelp_dispatch.carrier import Carrier, Right
from fedhelp_dispatch.job import Object, job_of
from fedhelp_dispatch.lifecycle import Event, looked
from fedhelp_dispatch.reading import condition, failure, over_quota, quota_part, why_waiting
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_KEPT = 86400  # seconds that a finished one stays, for people to look at
_FEEDBACK = {
    "complete": '.status.conditions[?(@.type=="Complete")].status',
    "completeSince": '.status.conditions[?(@.type=="Complete")].lastTransitionTime',
    "failed": '.status.conditions[?(@.type=="Failed")].status',
    "failedSince": '.status.conditions[?(@.type=="Failed")].lastTransitionTime',
    "failedReason": '.status.conditions[?(@.type=="Failed")].reason',
    "failedMessage": '.status.conditions[?(@.type=="Failed")].message',
    "suspended": '.status.conditions[?(@.type=="Suspended")].status',
    "suspendedSince": '.status.conditions[?(@.type=="Suspended")].lastTransitionTime',
    "startTime": ".status.startTime",
    "ready": ".status.ready",
}
_CONDITIONS = (("Complete", "complete"), ("Failed", "failed"), ("Suspended", "suspended"))


class ManifestWorkCarrier(Carrier):
    """See carrier.Carrier."""

    kind = "ManifestWork"
    group = "work.open-cluster-management.io/v1"
    resource = "manifestworks"
    ask = "ask whoever runs the Open Cluster Management hub for a Role on manifestworks in that namespace, or correct dispatch.cluster"
    rights: tuple[Right, ...] = (("work.open-cluster-management.io", "manifestworks", ("create", "get", "list", "watch", "delete")),)

    def namespace(self, entry: SiloEntry) -> str:
        """The hospital's, on the OCM hub."""
        return entry.dispatch.cluster or ""

    async def build(self, cluster: Cluster, request: WorkRequest) -> dict[str, Any]:
        """The ManifestWork, from the exported template."""
        return manifest_work_of(request)

    def rejected(self, request: WorkRequest) -> None:
        """Nothing to forget: the template is part of the run's config."""

    def slim_spec(self, spec: Object) -> dict[str, Any]:
        """Without the Job."""
        configs = [{"resourceIdentifier": config["resourceIdentifier"]} for config in spec.get("manifestConfigs", [])]
        return {"executor": spec.get("executor"), "manifestConfigs": configs}

    def reported(self, found: Object) -> dict[str, Any]:
        """A Job with as much of its status as the feedback holds, so that it is read like any other."""
        values = _feedback(found)
        conditions = [
            {"type": kind, "status": values[key], "lastTransitionTime": values.get(f"{key}Since", ""),
             "reason": values.get(f"{key}Reason", ""), "message": values.get(f"{key}Message", "")}
            for kind, key in _CONDITIONS if key in values]
        return {
            "metadata": found["metadata"],
            "spec": {"suspend": values.get("suspended") == "True"},
            "status": {"conditions": conditions, **{key: values[key] for key in ("startTime", "ready") if key in values}},
        }

    def waits(self, found: Object) -> Waiting | None:
        """See carrier.Carrier."""
        since = str(found["metadata"].get("creationTimestamp", ""))
        if found["metadata"].get("deletionTimestamp"):
            return Waiting(reason="its ManifestWork is being deleted", since=since)
        refusal = refused_there(found)
        if refusal is not None:
            said = f"the namespace's {quota_part(refusal)}" if over_quota(refusal) else refusal
            return Waiting(reason=f"the hospital's cluster does not take the Job: {said}", since=since)
        if condition(found.get("status", {}), "Applied") is None:
            return Waiting(reason="the hospital's agent has not fetched it yet; is its cluster connected?", since=since)
        waiting = why_waiting(self.reported(found))
        if waiting is not None and waiting.reason == "no pod yet":
            return Waiting(reason="its Job has no running pod; only the hospital sees why (kubectl describe pods)", since=waiting.since)
        return waiting

    async def look(self, cluster: Cluster, found: Object) -> Event:
        """There is nothing further to ask. The agent tries what is refused again and again, so that only lasting refusals end the work."""
        refusal = refused_there(found)
        if refusal is None or over_quota(refusal):
            return looked(found, self.waits(found))
        reason = f"the hospital's cluster refused the Job ({refusal}); {_advice(refusal, found)}"
        return looked(found, self.waits(found), Outcome(exit_code=AccessDenied.exit_code, reason=reason), "refusal")

    async def conclude(self, cluster: Cluster, found: Object, waited: Waiting | None) -> Outcome:
        """From the Failed condition alone."""
        outcome = failure(self.reported(found), [], [], waited)
        return replace(outcome, reason=f"{outcome.reason}; the hospital sees its log with: kubectl logs job/{found['metadata']['name']}")

    def job(self, found: Object) -> Object:
        """See carrier.Carrier."""
        job: Object = found["spec"]["workload"]["manifests"][0]
        return job


def manifest_work_of(request: WorkRequest) -> dict[str, Any]:
    """The ManifestWork that carries the request's Job.

    Raises:
        ConfigError: the exported template is none.
    """
    namespace, dispatch = request.entry.namespace, request.entry.dispatch
    job = job_of(dispatch.job_template or {}, request, namespace=namespace)
    name = job["metadata"]["name"]
    spec: dict[str, Any] = {
        "workload": {"manifests": [job]},
        "deleteOption": {"propagationPolicy": "Foreground", "ttlSecondsAfterFinished": _KEPT},
        "manifestConfigs": [{
            "resourceIdentifier": {"group": "batch", "resource": "jobs", "namespace": namespace, "name": name},
            "updateStrategy": {"type": "CreateOnly"},  # a Job's spec cannot be changed, and Kueue changes suspend
            "feedbackRules": [{"type": "JSONPaths", "jsonPaths": [{"name": key, "path": path} for key, path in _FEEDBACK.items()]}],
            "conditionRules": [{"type": "WellKnownConditions", "condition": "Complete"}],
        }],
    }
    if dispatch.executor is not None:
        account = {"namespace": namespace, "name": dispatch.executor}
        spec["executor"] = {"subject": {"type": "ServiceAccount", "serviceAccount": account}}
    metadata = {"name": name, "namespace": dispatch.cluster, "labels": job["metadata"]["labels"], "annotations": job["metadata"]["annotations"]}
    return {"apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork", "metadata": metadata, "spec": spec}


def refused_there(found: Object) -> str | None:
    """What the agent said when it could not create the Job; None if it could, or has not tried."""
    if _feedback(found):
        return None  # it is there: what is refused since is a change that nobody asked for
    for manifest in _manifests(found):
        for one in manifest.get("conditions") or []:
            if one.get("type") == "Applied" and one.get("status") == "False":
                return " ".join(str(one.get("message", "")).split())[:500]
    return None


def _advice(refusal: str, found: Object) -> str:
    """What to do about it."""
    spec = found["spec"]
    namespace = spec["manifestConfigs"][0]["resourceIdentifier"]["namespace"]
    if "not allowed to apply the resource" in refusal:  # OCM's check of the executor
        account = ((spec.get("executor") or {}).get("subject") or {}).get("serviceAccount")
        executor = f"service account {account['name']!r} (dispatch.executor)" if account else "the executor"
        return f"ask the hospital to let {executor} create, get, update, patch and delete jobs in namespace {namespace!r}"
    if f'namespaces "{namespace}" not found' in refusal:
        return f"ask the hospital to install its chart in namespace {namespace!r}, or correct dispatch.namespace"
    if "cannot create resource" in refusal:  # RBAC
        return "ask the hospital to name its agent's account under hub.subjects of its chart"
    return ("ask it for its current template (kubectl get cronjob fedhelp-worker -o yaml), named as dispatch.job_template,"
            " and whether its chart has this federation's store.url and endpoint_url")


def _feedback(found: Object) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for manifest in _manifests(found):
        for value in (manifest.get("statusFeedback") or {}).get("values") or []:
            field = value.get("fieldValue") or {}
            values[value.get("name", "")] = field.get(str(field.get("type", "")).lower())
    return {name: value for name, value in values.items() if value is not None}


def _manifests(found: Object) -> list[Any]:
    return (found.get("status", {}).get("resourceStatus") or {}).get("manifests") or []
