"""What a Job, its pods and its events say about a piece of work. Pure: objects in, sentences out.

Called by kubernetes.py and manifestwork.py (which rebuilds a Job's status from feedback) and by `fedhelp jobs`. Where the
hospital has to change something, the sentence says what to ask it for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedhelp_core.printable import printable
from fedhelp_dispatch.job import CONTAINER, QUEUE_LABEL, Object
from fedhelp_dispatch.request import Outcome, Waiting, exit_reason

Phase = Literal["queued", "pending", "running", "ending", "done", "failed"]

_PULL_FAULTS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_START_FAULTS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")  # what the Job controller says of a podFailurePolicy's FailJob
_LONGEST = 400  # characters of what somebody else's component said


@dataclass(frozen=True)
class JobReading:
    """A Job's own status."""

    phase: Phase
    since: str
    """ISO 8601, by the API server's clock."""
    reason: str = ""
    """CamelCase, as Kubernetes says it: DeadlineExceeded, BackoffLimitExceeded, PodFailurePolicy."""
    message: str = ""


def read_job(job: Object) -> JobReading:
    """The phase of a Job and since when."""
    metadata, status = job.get("metadata", {}), job.get("status", {})
    created = str(metadata.get("creationTimestamp", ""))
    for kind, phase in _ENDS:
        if (end := condition(status, kind)) is not None:
            since = str(end.get("lastTransitionTime", created))
            return JobReading(phase, since, str(end.get("reason", "")), _short(end.get("message", "")))
    if metadata.get("deletionTimestamp"):
        return JobReading("ending", str(metadata["deletionTimestamp"]))
    suspended = condition(status, "Suspended")
    if job.get("spec", {}).get("suspend"):
        return JobReading("queued", str((suspended or {}).get("lastTransitionTime", created)))
    if int(status.get("ready") or 0) > 0:
        return JobReading("running", str(status.get("startTime", created)))
    return JobReading("pending", str(status.get("startTime", created)))


_ENDS: tuple[tuple[str, Phase], ...] = (("Complete", "done"), ("Failed", "failed"))


def why_waiting(
    job: Object, pods: Sequence[Object] = (), events: Sequence[Object] = (), workloads: Sequence[Object] | None = None,
) -> Waiting | None:
    """Why a Job that has not ended does not run: as Kueue, the quota, the scheduler or the kubelet says it. None: it runs.

    `workloads`: what Kueue made of it; None where nobody may look.
    """
    reading = read_job(job)
    if reading.phase == "running":
        return None
    if reading.phase == "queued":
        queue = job.get("metadata", {}).get("labels", {}).get(QUEUE_LABEL)
        by = f"queued by Kueue in queue {queue!r}{_why_queued(workloads)}" if queue else "suspended: somebody set spec.suspend of the Job"
        return Waiting(reason=by, since=reading.since)
    if reading.phase == "ending":
        return Waiting(reason="its Job is being deleted", since=reading.since)
    if _has_succeeded(job, pods):
        return None
    alive = [pod for pod in pods if pod.get("status", {}).get("phase") in (None, "Pending", "Running")]
    if alive:
        return _why_pod_waits(newest(alive), reading)
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if refused:
        said = str(max(refused, key=_event_time).get("message", ""))
        since = str(min(str(event.get("firstTimestamp") or event.get("eventTime") or reading.since) for event in refused))
        return Waiting(reason=refused_pod(said), since=since)
    if pods:
        return Waiting(reason="its pod has ended; the Job starts another", since=reading.since)
    return Waiting(reason="no pod yet", since=reading.since)


def _has_succeeded(job: Object, pods: Sequence[Object]) -> bool:
    """Whether its work is done although the Job does not say so yet: it does not wait for a pod that it had."""
    status = job.get("status", {})
    uncounted = (status.get("uncountedTerminatedPods") or {}).get("succeeded")
    ended = any(pod.get("status", {}).get("phase") == "Succeeded" for pod in pods)
    return ended or bool(uncounted) or int(status.get("succeeded") or 0) > 0 or condition(status, "SuccessCriteriaMet") is not None


def _why_queued(workloads: Sequence[Object] | None) -> str:
    """What Kueue says, behind a colon; '' where that is not known."""
    if workloads is None:
        return ""
    if not workloads:
        return ": not taken up yet; should it stay so, ask the hospital whether Kueue runs there and knows the priority class of its values"
    conditions = newest(workloads).get("status", {}).get("conditions") or []
    for kind in ("QuotaReserved", "Admitted"):
        for one in conditions:
            if one.get("type") == kind and one.get("status") == "False" and one.get("message"):
                return f": {_short(one['message'])}"
    return ""


def _why_pod_waits(pod: Object, reading: JobReading) -> Waiting | None:
    status = pod.get("status", {})
    scheduled = next((c for c in status.get("conditions", []) if c.get("type") == "PodScheduled"), None)
    if scheduled is not None and scheduled.get("status") == "False":
        return Waiting(reason=f"no node can take its pod: {_short(scheduled.get('message', ''))}", since=str(scheduled.get("lastTransitionTime", "")))
    if (fault := pull_fault(pod)) is not None:
        return Waiting(reason=fault, since=_since_of(pod, reading))
    held = _container_state(pod, "waiting")
    if held is not None and held.get("reason") in _START_FAULTS:
        said = f"{held['reason']}: {_short(held.get('message', ''))}"
        return Waiting(reason=f"its container cannot start ({said}); ask the hospital to mend its chart's values", since=_since_of(pod, reading))
    if status.get("phase") == "Running" and _container_state(pod, "running") is not None:
        return None
    return Waiting(reason="its pod is starting (volumes, image)", since=_since_of(pod, reading))


def pull_fault(pod: Object) -> str | None:
    """The sentence for an image that cannot be pulled; None if that is not what is wrong."""
    held = _container_state(pod, "waiting")
    if held is None or held.get("reason") not in _PULL_FAULTS:
        return None
    image = pod.get("spec", {}).get("containers", [{}])[0].get("image", "")
    return (f"image {image!r} cannot be pulled ({held['reason']}: {_short(held.get('message', ''))});"
            " ask the hospital to check image, registry access and imagePullSecrets in its values")


def refused_pod(message: str) -> str:
    """The sentence for a pod that the namespace refuses to have."""
    if over_quota(message):
        return f"the namespace's {quota_part(message)}; it starts when other work has ended, or ask the hospital for more quota"
    return f"the namespace refuses its pod: {_short(message)}; ask the hospital to mend its chart's values"


def over_quota(message: str) -> bool:
    """Whether the API server refused something for a quota alone: waiting, no fault."""
    return "exceeded quota" in message


def quota_part(message: str) -> str:
    """'quota NAME is used up (requested: …, used: …, limited: …)' out of the API server's message."""
    match = re.search(r"exceeded quota: ([^,]+), (requested: .*)", message)
    return f"quota {match[1]} is used up ({_short(match[2])})" if match else _short(message)


def failure(job: Object, pods: Sequence[Object], log_tail: Sequence[str], waited: Waiting | None = None) -> Outcome:
    """How a failed Job ended, from its condition, its last pod and the end of that pod's log; `waited`: what it last waited for."""
    reading = read_job(job)
    if reading.reason == "DeadlineExceeded":
        seconds = job.get("spec", {}).get("activeDeadlineSeconds")
        doing = f"; it was still waiting: {waited}" if waited is not None else ""
        return Outcome(exit_code=None, late=True, reason=f"its Job ran into its deadline of {seconds} s{doing}")
    state = last_exit(pods)
    if state is None:
        match = _EXIT_CODE.search(reading.message)
        code = int(match[1]) if match else 1
        return Outcome(exit_code=code, reason=exit_reason(code, log_tail) if log_tail else f"exit code {code} ({reading.reason}: {reading.message})")
    code = int(state.get("exitCode", 1))
    if state.get("reason") == "OOMKilled":
        return Outcome(exit_code=code, reason="out of memory (OOMKilled); ask the hospital for a larger memory limit, or lower the batch sizes")
    return Outcome(exit_code=code, reason=exit_reason(code, log_tail or str(state.get("message", "")).splitlines()))


def last_exit(pods: Sequence[Object]) -> dict[str, Any] | None:
    """The terminated state of the worker container that ended last."""
    ended = [state for pod in pods if (state := _container_state(pod, "terminated")) is not None]
    return max(ended, key=lambda state: str(state.get("finishedAt", "")), default=None)


def newest(pods: Sequence[Object]) -> Object:
    """The one that was created last."""
    return max(pods, key=lambda pod: str(pod.get("metadata", {}).get("creationTimestamp", "")))


def _container_state(pod: Object, kind: str) -> dict[str, Any] | None:
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container.get("name") == CONTAINER:
            state: dict[str, Any] | None = container.get("state", {}).get(kind)
            return state
    return None


def condition(status: Object, kind: str) -> Object | None:
    """That of one kind, if it is true."""
    return next((c for c in status.get("conditions") or [] if c.get("type") == kind and c.get("status") == "True"), None)


def _since_of(pod: Object, reading: JobReading) -> str:
    return str(pod.get("status", {}).get("startTime") or pod.get("metadata", {}).get("creationTimestamp") or reading.since)


def _event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _short(text: object) -> str:
    return printable(" ".join(str(text)[: _LONGEST * 4].split()), _LONGEST)
