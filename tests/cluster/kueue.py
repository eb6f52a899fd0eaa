"""A real Kueue beside a test cluster: its chart without the Deployment, its manager as a process of this machine.

    kueue = Kueue(cluster).start()
    kueue.add_queue("gpus", namespace, gpus=1)      # a ClusterQueue, and a LocalQueue of the same name in the namespace
    kueue.hold("gpus")                              # nothing is admitted; drain: what was admitted is evicted; release: both end

The API server reaches the manager's webhooks as it does in production, by the name of their Service, which is an ExternalName here.
"""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import yaml

from tests.cluster.build import binary, files_of
from tests.cluster.control_plane import ControlPlane
from tests.cluster.processes import free_ports

_NAMESPACE = "kueue-system"
_WEBHOOKS = "kueue-webhook-service"
_FLAVOR = "any-node"


class Kueue:
    """Its resources in `cluster`, and its manager, which ends with the cluster."""

    def __init__(self, cluster: ControlPlane) -> None:
        self.cluster = cluster
        self._installed: list[dict[str, Any]] = []

    def start(self) -> Self:
        """Install and start it; returns when it admits and its webhooks answer."""
        webhook_port, metrics_port, self._health_port = free_ports(3)
        self._installed = list(self._rendered(webhook_port))
        config = next(yaml.safe_load(one["data"]["controller_manager_config.yaml"]) for one in self._installed if one["kind"] == "ConfigMap")
        certificates = self.cluster.folder / "kueue-certificates"
        config["webhook"] |= {"port": webhook_port, "certDir": str(certificates)}
        config["metrics"] |= {"bindAddress": f"127.0.0.1:{metrics_port}"}
        config["health"] |= {"healthProbeBindAddress": f"127.0.0.1:{self._health_port}"}
        config["leaderElection"] = {"leaderElect": False}
        config["integrations"] = {"frameworks": ["batch/job"]}
        path = self.cluster.folder / "kueue.yaml"
        path.write_text(yaml.safe_dump(config))
        self.cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": _NAMESPACE}})
        self._apply(*self._installed)
        self.cluster.processes.start(
            "kueue", [binary("kueue"), f"--config={path}", f"--kubeconfig={self.cluster.kubeconfig()}", "--feature-gates=VisibilityOnDemand=false"])
        self.cluster.processes.wait("kueue", lambda: self._mounted(certificates), 60)
        self.cluster.processes.wait("kueue", self._is_ready, 60)
        flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": _FLAVOR}}
        self.cluster.processes.wait("kueue", lambda: self._taken(flavor), 60)
        return self

    def stop(self) -> None:
        """End it and take its resources away: its webhooks would refuse every Job without it."""
        self.cluster.kubectl("delete", "-f", "-", "--ignore-not-found", "--timeout=60s", input=yaml.safe_dump_all(self._installed))
        self.cluster.processes.stop("kueue")

    def add_queue(self, name: str, namespace: str, *, gpus: int, cpus: int = 100) -> None:
        """A queue for Jobs of `namespace` that together use at most `gpus` and `cpus`."""
        quotas = {"cpu": str(cpus), "memory": "1Ti", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)}
        self._apply(
            {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": name}, "spec": {
                "namespaceSelector": {}, "resourceGroups": [{
                    "coveredResources": list(quotas),
                    "flavors": [{"name": _FLAVOR, "resources": [{"name": key, "nominalQuota": value} for key, value in quotas.items()]}]}]}})
        self.add_local_queue(name, namespace)

    def add_local_queue(self, name: str, namespace: str) -> None:
        """Let Jobs of a further namespace into it."""
        self._apply({
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name}})

    def remove_queue(self, name: str, namespace: str) -> None:
        """Take it away again."""
        self.cluster.kubectl("-n", namespace, "delete", "localqueue", name, "--timeout=60s")
        self.cluster.kubectl("delete", "clusterqueue", name, "--timeout=60s")

    def hold(self, queue: str) -> None:
        """Admit nothing more."""
        self._stop(queue, "Hold")

    def drain(self, queue: str) -> None:
        """Evict what was admitted, and admit nothing more."""
        self._stop(queue, "HoldAndDrain")

    def release(self, queue: str) -> None:
        """Admit again."""
        self._stop(queue, "None")

    def _stop(self, queue: str, policy: str) -> None:
        self.cluster.kubectl("patch", "clusterqueue", queue, "--type=merge", "--patch", json.dumps({"spec": {"stopPolicy": policy}}))

    def _rendered(self, webhook_port: int) -> Iterator[dict[str, Any]]:
        """The objects of Kueue's own chart, but for its Deployment and the extra API that only that could serve."""
        command = [binary("helm"), "template", "kueue", files_of("kueue"), "--namespace", _NAMESPACE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        for one in yaml.safe_load_all(done.stdout):
            if one and one["kind"] not in ("Deployment", "APIService"):
                if one["kind"] == "Service" and one["metadata"]["name"] == _WEBHOOKS:
                    one["spec"] = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": webhook_port}]}
                for reference in _references(one):
                    reference["port"] = webhook_port
                yield one

    def _apply(self, *objects: dict[str, Any]) -> None:
        text = yaml.safe_dump_all(objects)
        self.cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)  # the CRDs are too large for another apply

    def _mounted(self, folder: Path) -> bool:
        """Whether its certificates are in `folder`: it keeps them in a Secret, which a kubelet would mount there."""
        secret = self.cluster.request("GET", f"/api/v1/namespaces/{_NAMESPACE}/secrets/kueue-webhook-server-cert")
        folder.mkdir(exist_ok=True)
        for name, content in secret.get("data", {}).items():
            (folder / name).write_bytes(base64.b64decode(content))
        return (folder / "tls.key").exists()

    def _taken(self, one: dict[str, Any]) -> bool:
        try:
            self._apply(one)
        except RuntimeError:
            return False
        return True

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _references(node: Any) -> Iterator[dict[str, Any]]:
    """Every reference to the webhooks' Service below `node`."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "service" and isinstance(value, dict) and value.get("name") == _WEBHOOKS:
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for one in node:
            yield from _references(one)

