"""A hospital's namespace on a test cluster: its Job template, the hub's account with the chart's Role, and pods that only pretend.

What chart fedhelp-silo installs of these is the same; here they are a few lines, so that each test can leave one out. Used by
test_dispatch_*.py and benchmarks/dispatch_scale.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedhelp_core.config.federation import Federation, parse_federation
from fedhelp_dispatch.request import Action, WorkRequest, request_for
from tests.cluster.control_plane import ControlPlane

_T = TypeVar("_T")
HUB = "system:serviceaccount:{namespace}:hub"
RULES = [
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
    {"apiGroups": ["batch"], "resources": ["cronjobs"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]},
]


def template(silo: str, *, queue: str | None = None, backoff: int = 0) -> dict[str, Any]:
    """The suspended CronJob `fedhelp-worker`."""
    labels = {"app.kubernetes.io/part-of": "fedhelp", "fedhelp.io/silo": silo}
    container = {
        "name": "worker", "image": "registry.example/fedhelp-silo:1", "command": ["fedhelp-worker"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = {
        "restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}}
    spec = {
        "backoffLimit": backoff, "podReplacementPolicy": "Failed", "ttlSecondsAfterFinished": 86400, "activeDeadlineSeconds": 86400,
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": list(range(10, 20))}}]},
        "template": {"metadata": {"labels": labels}, "spec": pod}}
    queued = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    return {
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "fedhelp-worker", "labels": labels},
        "spec": {"suspend": True, "schedule": "0 0 31 2 *", "jobTemplate": {"metadata": {"labels": {**labels, **queued}}, "spec": spec}}}


class Hospital:
    """A namespace with template and Role, and what the administrator of a cluster can do to its Jobs and pods."""

    def __init__(self, cluster: ControlPlane, silo: str, account: str, *, install: bool = True, role: bool = True, **of_template: Any) -> None:
        self.cluster = cluster
        self.silo = silo
        self._node = busy_node(cluster)
        self.namespace = cluster.new_namespace(silo, {"pod-security.kubernetes.io/enforce": "restricted"})
        if install:
            cluster.request("POST", f"/apis/batch/v1/namespaces/{self.namespace}/cronjobs", template(silo, **of_template))
        if role:
            self.grant(account)

    def grant(self, account: str) -> None:
        """The chart's Role and RoleBinding for the hub's account."""
        base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}"
        namespace, _, name = account.removeprefix("system:serviceaccount:").partition(":")
        self.cluster.request("POST", f"{base}/roles", {"metadata": {"name": "fedhelp-hub"}, "rules": RULES})
        self.cluster.request("POST", f"{base}/rolebindings", {
            "metadata": {"name": "fedhelp-hub"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "fedhelp-hub"},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}]})
        until_allowed(self.cluster, account, namespace=self.namespace, verb="list", resource="events")

    def jobs(self) -> list[dict[str, Any]]:
        """All Jobs there."""
        return list(self.cluster.request("GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs")["items"])

    def job(self) -> dict[str, Any]:
        """The only Job there, once it is."""
        (found,) = eventually(self.jobs)
        return dict(found)

    def patch_job(self, spec: dict[str, Any]) -> None:
        """As Kueue's controller or a person would."""
        name = self.job()["metadata"]["name"]
        self.cluster.request("PATCH", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}", {"spec": spec}, "application/merge-patch+json")

    def delete_job(self) -> None:
        """By hand."""
        name = self.job()["metadata"]["name"]
        self.cluster.request("DELETE", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}?propagationPolicy=Background")

    def quota(self, **hard: str) -> None:
        """A ResourceQuota that is in force."""
        path = f"/api/v1/namespaces/{self.namespace}/resourcequotas"
        self.cluster.request("POST", path, {"metadata": {"name": "gpus"}, "spec": {"hard": hard}})
        eventually(lambda: self.cluster.request("GET", f"{path}/gpus").get("status", {}).get("hard"))

    def pod(self) -> dict[str, Any]:
        """The youngest pod there that has not ended, once there is one."""

        def alive() -> list[dict[str, Any]]:
            found = self.cluster.request("GET", f"/api/v1/namespaces/{self.namespace}/pods")["items"]
            return [pod for pod in found if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]]

        return max(eventually(alive), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def run_pod(self) -> None:
        """Its container runs."""
        self._pod_is("Running", {"running": {"startedAt": _now()}}, ready="True")

    def end_pod(self, code: int, message: str = "", *, disrupted: bool = False) -> None:
        """Its container ends with `code`; `disrupted`: because its node is drained."""
        state = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message, "startedAt": _now(), "finishedAt": _now()}
        evicted = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "lastTransitionTime": _now()}]
        self._pod_is("Succeeded" if code == 0 else "Failed", {"terminated": state}, evicted if disrupted else [])

    def pull_fails(self) -> None:
        """Its image cannot be pulled."""
        self._pod_is("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image: not found"}})

    def _pod_is(self, phase: str, state: dict[str, Any], further: Sequence[dict[str, Any]] = (), *, ready: str = "False") -> None:
        container = {"name": "worker", "image": "i", "imageID": "", "restartCount": 0, "ready": ready == "True", "state": state}
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": _now()}
            for kind, status in (("PodScheduled", "True"), ("Ready", ready), ("ContainersReady", ready))]
        pod = self.pod()
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"
        if "nodeName" not in pod["spec"]:  # else the scheduler, trying again, would write over what is said here
            bound = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": self._node}}
            self.cluster.request("POST", f"{path}/binding", bound)
        status = {"phase": phase, "startTime": _now(), "conditions": [*conditions, *further], "containerStatuses": [container]}
        self.cluster.request("PATCH", f"{path}/status", {"status": status}, "application/strategic-merge-patch+json")


def request_of(config: Federation, run_id: str, silo: str, action: Action, only_round: int | None = None) -> WorkRequest:
    """request_for, by the silo's name."""
    (entry,) = (entry for entry in config.silos if entry.name == silo)
    return request_for(config, run_id, entry, action, only_round)


def busy_node(cluster: ControlPlane) -> str:
    """The cluster's only node, ready and without a free GPU: pods wait for it, and what becomes of one is what a test says."""
    nodes = cluster.request("GET", "/api/v1/nodes")["items"]
    return str(nodes[0]["metadata"]["name"]) if nodes else cluster.add_kwok_nodes(1, gpus=0, pods=None)[0]


def hub_account(cluster: ControlPlane) -> str:
    """A new account for a hub, without any right yet."""
    namespace = cluster.new_namespace("hub")
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "hub"}})
    return HUB.format(namespace=namespace)


def until_allowed(cluster: ControlPlane, account: str, **attributes: str) -> None:
    """Return when a right that was just given is in force."""
    asked = {"spec": {"user": account, "resourceAttributes": attributes}}
    eventually(lambda: cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asked)["status"]["allowed"])


def federation(*hospitals: Hospital, residency: str = "run", rounds: int = 2, **dispatch: Any) -> Federation:
    """Of these hospitals, each by the kubeconfig's current context."""
    silos = [
        {"name": hospital.silo, "dispatch": {"kind": "kubernetes", "namespace": hospital.namespace, "residency": residency, **dispatch}}
        for hospital in hospitals]
    return parse_federation({
        "name": "test", "algorithm": {"method": "fedavg", "rounds": rounds}, "protocol": {"min_silos": 1}, "store": {"url": "s3://exchange/test"},
        "tracking": {"uri": "http://mlflow.hub:5000"}, "silos": silos}, source="test")


def eventually(look: Callable[[], _T | None], seconds: float = 60.0) -> _T:
    """What `look` gives as soon as that is true."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.1)
    return found


def context_named(kubeconfig: Path, name: str) -> Path:
    """A copy of a kubeconfig whose only context, cluster and user are called `name`, so that it can be merged with others."""
    document = yaml.safe_load(kubeconfig.read_text())
    for entry in (document["contexts"][0], document["clusters"][0], document["users"][0]):
        entry["name"] = name
    document["contexts"][0]["context"] |= {"cluster": name, "user": name}
    document["current-context"] = name
    copied = kubeconfig.with_name(f"{name}.yaml")
    copied.touch(mode=0o600)
    copied.write_text(yaml.safe_dump(document))
    return copied


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
