"""reading.py: what Kubernetes says about a Job becomes one sentence, with what to ask the hospital for."""

from __future__ import annotations

from typing import Any

import pytest

from fedhelp_dispatch.reading import failure, read_job, why_waiting
from fedhelp_dispatch.request import Outcome, Waiting

CREATED, STARTED, NOW = "2026-11-25T10:00:00Z", "2026-11-25T10:00:01Z", "2026-11-25T10:05:00Z"


def job(status: dict[str, Any] | None = None, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "j", "creationTimestamp": CREATED, "labels": labels or {}}, "spec": spec, "status": status or {"startTime": STARTED}}


def failed(reason: str, message: str = "", **spec: Any) -> dict[str, Any]:
    return job({"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}]}, **spec)


def pod(phase: str = "Pending", state: dict[str, Any] | None = None, unscheduled: str = "") -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unscheduled, "lastTransitionTime": NOW}]
    return {
        "metadata": {"name": "p", "creationTimestamp": STARTED}, "spec": {"containers": [{"name": "worker", "image": "registry.example/silo:1"}]},
        "status": {"phase": phase, "conditions": conditions if unscheduled else [], "startTime": STARTED,
                   "containerStatuses": [{"name": "worker", "state": state}] if state else []}}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return pod("Failed", {"terminated": {"exitCode": code, "reason": reason, "finishedAt": NOW}})


@pytest.mark.parametrize(("found", "phase", "since"), [
    (job(), "pending", STARTED),
    (job({"startTime": STARTED, "active": 1, "ready": 1}), "running", STARTED),
    (job({}, suspend=True), "queued", CREATED),
    (job({"conditions": [{"type": "Suspended", "status": "True", "lastTransitionTime": NOW}]}, suspend=True), "queued", NOW),
    (job({"conditions": [{"type": "Suspended", "status": "False"}], "startTime": STARTED}), "pending", STARTED),
    (job({"conditions": [{"type": "FailureTarget", "status": "True"}], "startTime": STARTED, "ready": 1}), "running", STARTED),
    (job({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": NOW}]}), "done", NOW),
    (failed("BackoffLimitExceeded"), "failed", NOW),
], ids=["new", "ready", "suspended", "suspended since", "resumed", "about to fail", "complete", "failed"])
def test_a_jobs_phase_and_since_when(found: dict[str, Any], phase: str, since: str) -> None:
    reading = read_job(found)
    assert (reading.phase, reading.since) == (phase, since)


def test_a_job_in_deletion_is_ending() -> None:
    found = job({"active": 1, "ready": 1})
    found["metadata"]["deletionTimestamp"] = NOW
    assert read_job(found).phase == "ending"


QUOTA = (
    'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2,'
    " limited: requests.nvidia.com/gpu=2")


@pytest.mark.parametrize(("found", "pods", "events", "expected"), [
    (job({"ready": 1, "startTime": STARTED}), [], [], None),
    (job({}, {"kueue.x-k8s.io/queue-name": "gpus"}, suspend=True), [], [], Waiting(reason="queued by Kueue in queue 'gpus'", since=CREATED)),
    (job({}, suspend=True), [], [], Waiting(reason="suspended: somebody set spec.suspend of the Job", since=CREATED)),
    (job(), [pod(unscheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")], [],
     Waiting(reason="no node can take its pod: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", since=NOW)),
    (job(), [pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}})], [],
     Waiting(reason="image 'registry.example/silo:1' cannot be pulled (ImagePullBackOff: Back-off pulling); ask the hospital to check image,"
                    " registry access and imagePullSecrets in its values", since=STARTED)),
    (job(), [pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"s3\" not found"}})], [],
     Waiting(reason='its container cannot start (CreateContainerConfigError: secret "s3" not found); ask the hospital to mend its chart\'s values',
             since=STARTED)),
    (job(), [pod(state={"waiting": {"reason": "ContainerCreating"}})], [], Waiting(reason="its pod is starting (volumes, image)", since=STARTED)),
    (job(), [], [{"reason": "FailedCreate", "message": QUOTA, "firstTimestamp": NOW, "lastTimestamp": NOW}],
     Waiting(reason="the namespace's quota gpus is used up (requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=2, limited:"
                    " requests.nvidia.com/gpu=2); it starts when other work has ended, or ask the hospital for more quota", since=NOW)),
    (job(), [ended(30)], [], Waiting(reason="its pod has ended; the Job starts another", since=STARTED)),
    (job(), [], [], Waiting(reason="no pod yet", since=STARTED)),
    (job({"startTime": STARTED, "succeeded": 1}), [], [], None),
    (job({"startTime": STARTED, "uncountedTerminatedPods": {"succeeded": ["uid"]}}), [], [], None),
    (job({"startTime": STARTED, "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}), [], [], None),
    (job(), [{"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}}], [], None),
], ids=["runs", "kueue", "suspended", "no gpu", "image", "secret", "starting", "quota", "between pods", "new",
        "counted", "not counted yet", "about to be complete", "its pod succeeded"])
def test_why_work_waits_and_since_when(found: Any, pods: Any, events: Any, expected: Waiting | None) -> None:
    assert why_waiting(found, pods, events) == expected


def workload(*conditions: tuple[str, str, str]) -> Any:
    return {"metadata": {"creationTimestamp": CREATED}, "status": {"conditions": [
        {"type": kind, "status": status, "message": message} for kind, status, message in conditions]}}


@pytest.mark.parametrize(("workloads", "said"), [
    (None, ""),
    ([], ": not taken up yet; should it stay so, ask the hospital whether Kueue runs there and knows the priority class of its values"),
    ([workload()], ""),
    ([workload(("PodsReady", "False", "Not all pods are ready"), ("QuotaReserved", "False", "LocalQueue gpus doesn't exist"))],
     ": LocalQueue gpus doesn't exist"),
    ([workload(("QuotaReserved", "True", "Quota reserved"), ("Admitted", "False", "The workload has not all checks ready"))],
     ": The workload has not all checks ready"),
    ([workload(("QuotaReserved", "True", "Quota reserved"), ("Admitted", "True", "The workload is admitted"))], ""),
], ids=["may not look", "none", "new", "no queue", "checks", "admitted"])
def test_why_work_waits_in_a_queue(workloads: Any, said: str) -> None:
    queued = job({}, {"kueue.x-k8s.io/queue-name": "gpus"}, suspend=True)
    assert why_waiting(queued, workloads=workloads) == Waiting(reason=f"queued by Kueue in queue 'gpus'{said}", since=CREATED)


LOG = ["{\"event\": \"round_started\"}", "fedhelp-worker train: error: image 7.jpg: cannot be decoded"]


@pytest.mark.parametrize(("found", "pods", "log", "expected"), [
    (failed("PodFailurePolicy", "Container worker for pod n/p failed with exit code 11 matching FailJob rule at index 1"), [ended(11)], LOG,
     Outcome(exit_code=11, reason="image 7.jpg: cannot be decoded")),
    (failed("PodFailurePolicy", "Container worker for pod n/p failed with exit code 11 matching FailJob rule at index 1"), [], [],
     Outcome(exit_code=11, reason="exit code 11 (PodFailurePolicy: Container worker for pod n/p failed with exit code 11 matching FailJob rule at"
                                  " index 1)")),
    (failed("BackoffLimitExceeded"), [ended(30)], [], Outcome(exit_code=30, reason="exit code 30")),
    (failed("BackoffLimitExceeded"), [ended(137, "OOMKilled")], ["..."],
     Outcome(exit_code=137, reason="out of memory (OOMKilled); ask the hospital for a larger memory limit, or lower the batch sizes")),
    (failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"), [], [],
     Outcome(exit_code=1, reason="exit code 1 (BackoffLimitExceeded: Job has reached the specified backoff limit)")),
    (failed("DeadlineExceeded", activeDeadlineSeconds=60), [ended(143)], [],
     Outcome(exit_code=None, late=True, reason="its Job ran into its deadline of 60 s; it was still waiting: no GPU (since now)")),
], ids=["bad data", "bad data, pod gone", "store away", "out of memory", "pods gone", "deadline"])
def test_how_work_failed(found: Any, pods: Any, log: list[str], expected: Outcome) -> None:
    outcome = failure(found, pods, log, Waiting(reason="no GPU", since="now"))
    assert outcome == expected
    assert outcome.permanent == (expected.exit_code == 11)
