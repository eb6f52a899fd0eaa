"""job.py and manifestwork.py's pure part: a hospital's template and a request make exactly this object, and nothing else."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.errors import ConfigError
from fedhelp_dispatch.job import is_of, job_name, job_of, request_sha256
from fedhelp_dispatch.manifestwork import manifest_work_of
from fedhelp_dispatch.request import WorkRequest, request_for


def at(silo: str, **dispatch: Any) -> SiloEntry:
    return SiloEntry.model_validate({"name": silo, "dispatch": {"kind": "kubernetes", **dispatch}})


REQUEST = WorkRequest(
    run_id="demo-1", entry=at("aachen"), action="train", store_url="s3://exchange/fed", endpoint_url="https://s3.example", only_round=7,
    deadline_s=3600, lease_s=600.0)
ARGUMENTS = ["train", "--run", "demo-1", "--store", "s3://exchange/fed", "--endpoint-url", "https://s3.example", "--round", "7", "--lease", "600"]

POD_SPEC: dict[str, Any] = {
    "serviceAccountName": "fedhelp-worker", "restartPolicy": "Never", "automountServiceAccountToken": False,
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [{
        "name": "worker", "image": "registry.example/fedhelp-silo@sha256:abc", "command": ["python", "-m", "fedhelp_dispatch.worker"],
        "env": [{"name": "FEDHELP_SILO_CONFIG", "value": "/etc/fedhelp/silo.yaml"}],
        "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "8Gi"}, "requests": {"cpu": "2"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}]}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "images", "readOnly": True}}],
}
JOB_SPEC: dict[str, Any] = {
    "backoffLimit": 3, "podReplacementPolicy": "Failed", "ttlSecondsAfterFinished": 86400, "activeDeadlineSeconds": 86400,
    "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": list(range(10, 20))}}]},
    "template": {"metadata": {"labels": {"fedhelp.io/silo": "aachen", "app.kubernetes.io/part-of": "fedhelp"}}, "spec": POD_SPEC},
}
TEMPLATE: dict[str, Any] = {
    "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "fedhelp-worker", "namespace": "hospital-aachen", "uid": "1"},
    "spec": {"suspend": True, "schedule": "0 0 31 2 *", "jobTemplate": {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "fedhelp", "fedhelp.io/silo": "aachen"}, "annotations": {"of": "the template"}},
        "spec": JOB_SPEC}},
    "status": {},
}


def with_queue() -> dict[str, Any]:
    template = copy.deepcopy(TEMPLATE)
    template["spec"]["jobTemplate"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    return template


def expected_job() -> dict[str, Any]:
    pod = copy.deepcopy(POD_SPEC)
    pod["containers"][0]["args"] = ARGUMENTS
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": job_name(REQUEST), "namespace": "hospital-aachen",
            "labels": {
                "app.kubernetes.io/part-of": "fedhelp", "fedhelp.io/silo": "aachen", "fedhelp.io/run": "demo-1", "fedhelp.io/action": "train",
                "fedhelp.io/round": "7"},
            "annotations": {"fedhelp.io/request-sha256": request_sha256(REQUEST)}},
        "spec": {**JOB_SPEC, "activeDeadlineSeconds": 3600, "template": {**JOB_SPEC["template"], "spec": pod}},
    }


def test_the_job_is_the_template_with_name_labels_hash_arguments_and_deadline_and_nothing_else() -> None:
    template = copy.deepcopy(TEMPLATE)
    assert job_of(template, REQUEST, namespace="hospital-aachen") == expected_job()
    assert template == TEMPLATE, "the template itself was changed"


def test_with_a_queue_the_job_is_made_suspended_and_carries_the_queue() -> None:
    expected = expected_job()
    expected["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    expected["spec"]["suspend"] = True
    assert job_of(with_queue(), REQUEST, namespace="hospital-aachen") == expected


@pytest.mark.parametrize(("templates", "asked", "expected"), [(86400, 3600, 3600), (600, 3600, 600), (None, 3600, 3600)])
def test_the_shorter_deadline_counts(templates: int | None, asked: int, expected: int) -> None:
    template = copy.deepcopy(TEMPLATE)
    spec = template["spec"]["jobTemplate"]["spec"]
    spec["activeDeadlineSeconds"] = templates
    if templates is None:
        del spec["activeDeadlineSeconds"]
    assert job_of(template, replace(REQUEST, deadline_s=asked), namespace="n")["spec"]["activeDeadlineSeconds"] == expected


@pytest.mark.parametrize("template", [
    {}, {"kind": "Deployment", "spec": {"jobTemplate": {"spec": JOB_SPEC}}}, {"kind": "CronJob", "spec": {}},
    {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}}},
    {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "worker"}, {"name": "other"}]}}}}}},
], ids=["empty", "no cronjob", "no job template", "no container", "two containers"])
def test_a_template_that_is_none_is_refused_with_what_to_ask_for(template: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"silo 'aachen': its Job template in namespace 'hospital-aachen' should be.*ask the hospital"):
        job_of(template, REQUEST, namespace="hospital-aachen")


def test_names_tell_what_runs() -> None:
    assert re.fullmatch(r"demo-1-aachen-train-r7-[0-9a-f]{12}", job_name(REQUEST))
    assert re.fullmatch(r"demo-1-aachen-check-[0-9a-f]{12}", job_name(replace(REQUEST, action="check", only_round=None)))


LONG = replace(REQUEST, run_id="a" * 63, entry=at("b" * 40), only_round=100_000)


@pytest.mark.parametrize("request_", [
    REQUEST, LONG, replace(LONG, entry=at("s")), replace(LONG, run_id="r"), replace(LONG, run_id=f"{'x' * 15}-{'y' * 40}"),
    replace(LONG, entry=at(f"{'x' * 17}-{'y' * 20}"), action="evaluate", only_round=None),
], ids=["short", "long", "long run", "long silo", "cut at a dash", "cut at a dash in the silo"])
def test_names_are_legal(request_: WorkRequest) -> None:
    name = job_name(request_)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 63


def test_names_differ_whenever_run_round_silo_or_action_do() -> None:
    others = [
        replace(REQUEST, run_id="demo-1-aachen", entry=at("train")), replace(REQUEST, run_id="demo", entry=at("1-aachen")),
        replace(REQUEST, only_round=8), replace(REQUEST, only_round=None), replace(REQUEST, action="evaluate", only_round=None), LONG,
        replace(LONG, run_id="a" * 62), replace(LONG, entry=at("b" * 39))]
    names = [job_name(request) for request in [REQUEST, *others]]
    assert len(set(names)) == len(names)


def test_the_name_does_not_depend_on_what_else_is_asked_but_the_hash_does() -> None:
    other = replace(REQUEST, store_url="s3://elsewhere/fed")
    assert job_name(other) == job_name(REQUEST)
    made = job_of(TEMPLATE, REQUEST, namespace="n")
    assert is_of(made, REQUEST)
    assert not is_of(made, other)
    assert not is_of(made, replace(REQUEST, deadline_s=10))
    assert not is_of({"metadata": {"name": job_name(REQUEST)}}, REQUEST)


FEDERATION = parse_federation({
    "name": "demo", "algorithm": {"method": "fedavg", "rounds": 20}, "protocol": {"round_deadline": 60.5, "lease": 90},
    "store": {"url": "s3://exchange/fed"}, "silos": [{"name": "aachen", "dispatch": {"kind": "kubernetes"}}]}, source="test")


@pytest.mark.parametrize(("action", "only_round", "deadline_s"), [("train", 3, 61), ("train", None, 1210), ("check", None, 3600)])
def test_deadlines_follow_from_the_round_deadline(action: Any, only_round: int | None, deadline_s: int) -> None:
    request = request_for(FEDERATION, "r", FEDERATION.silos[0], action, only_round)
    assert request.deadline_s == deadline_s
    assert request == request_for(FEDERATION, "r", FEDERATION.silos[0], action, only_round)
    assert request.arguments()[-2:] == ["--lease", "90"]


def test_a_manifest_work_carries_the_same_job_to_the_hospital_and_asks_for_its_status() -> None:
    silo = at("aachen", kind="manifestwork", cluster="clinic-aachen", namespace="hospital-aachen", job_template=TEMPLATE, executor="fedhelp-hub")
    work = manifest_work_of(replace(REQUEST, entry=silo))
    job = expected_job()
    paths = work["spec"]["manifestConfigs"][0].pop("feedbackRules")[0]["jsonPaths"]
    assert work == {
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {
            "name": job_name(REQUEST), "namespace": "clinic-aachen", "labels": job["metadata"]["labels"],
            "annotations": job["metadata"]["annotations"]},
        "spec": {
            "workload": {"manifests": [job]},
            "deleteOption": {"propagationPolicy": "Foreground", "ttlSecondsAfterFinished": 86400},
            "executor": {"subject": {"type": "ServiceAccount", "serviceAccount": {"namespace": "hospital-aachen", "name": "fedhelp-hub"}}},
            "manifestConfigs": [{
                "resourceIdentifier": {"group": "batch", "resource": "jobs", "namespace": "hospital-aachen", "name": job_name(REQUEST)},
                "updateStrategy": {"type": "CreateOnly"}, "conditionRules": [{"type": "WellKnownConditions", "condition": "Complete"}]}]},
    }
    assert {"name": "failedMessage", "path": '.status.conditions[?(@.type=="Failed")].message'} in paths
