"""Open Cluster Management's part in the tests: its resources on both API servers, and its work agent between them, which is the real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

import yaml

from tests.cluster.build import REPOSITORY, binary, files_of
from tests.cluster.control_plane import ADMINISTRATOR, ControlPlane

GROUP = "work.open-cluster-management.io"
_PROGRAM = "ocm-work-agent"


def install_works(cluster: ControlPlane) -> None:
    """What the hub's cluster has: ManifestWorks."""
    _install(cluster, "manifestworks")


def install_applied_works(cluster: ControlPlane) -> None:
    """What a hospital's cluster has: its agent's own record."""
    _install(cluster, "appliedmanifestworks")


def agent_account(cluster: ControlPlane) -> str:
    """A service account for an agent in a hospital's cluster, with the rights that the guide gives it."""
    guide = (REPOSITORY / "docs" / "operating.md").read_text(encoding="utf-8")
    given = re.search(r"<!-- run: agent -->.*?<<'EOF'\n(.*?)EOF", guide, re.DOTALL)
    assert given
    namespace = cluster.new_namespace("agent")
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "work"}})
    base = "/apis/rbac.authorization.k8s.io/v1"
    cluster.request("POST", f"{base}/clusterroles", {"metadata": {"name": namespace}, "rules": yaml.safe_load(given[1])["rules"]})
    cluster.request("POST", f"{base}/clusterrolebindings", {
        "metadata": {"name": namespace}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": "work"}]})
    return f"system:serviceaccount:{namespace}:work"


class WorkAgent:
    """The agent of the hospital `managed` (its namespace on the hub), inside `with`: it talks to both servers, and nobody talks to it."""

    def __init__(self, hub: ControlPlane, managed: str, there: ControlPlane, *, account: str = ADMINISTRATOR) -> None:
        """`account`: as whom it works in the hospital's cluster."""
        self._hub = hub
        self._managed = managed
        self._there = there
        self._account = account

    def __enter__(self) -> Self:
        kubeconfigs = ["-hub", self._hub.kubeconfig(), "-here", self._there.kubeconfig(self._account)]
        self._there.processes.start(_PROGRAM, [binary(_PROGRAM), *kubeconfigs, "-cluster", self._managed, "-report", "1s"])
        return self

    def __exit__(self, *_: object) -> None:
        self._there.processes.stop(_PROGRAM)


def _install(cluster: ControlPlane, resource: str) -> None:
    definition: Path = next(files_of(_PROGRAM).glob(f"*_{GROUP}_{resource}.crd.yaml"))
    cluster.kubectl("apply", "--server-side", "-f", str(definition))
    cluster.kubectl("wait", "--for=condition=established", f"crd/{resource}.{GROUP}", "--timeout=30s")
