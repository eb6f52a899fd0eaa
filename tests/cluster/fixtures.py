"""pytest fixtures over control_plane.py and node.py.

A test folder elsewhere gets them with two lines in its conftest.py:

    from tests.cluster.fixtures import control_plane, namespace
    __all__ = ["control_plane", "namespace"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Node


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server with its controllers, shared by all tests of the session: make namespaces, never edit what others see."""
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as cluster:
        _keep_parameters_watched(cluster)
        yield cluster


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own that enforces the `restricted` Pod Security level, as a hospital's does."""
    yield from _restricted_namespace(control_plane)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real node with two GPUs and a control plane of its own (`node.cluster`), shared by all tests of the session."""
    with ControlPlane(tmp_path_factory.mktemp("node")) as cluster, Node(cluster, gpus=2) as one:
        yield one


@pytest.fixture
def node_namespace(node: Node) -> Iterator[str]:
    """Like `namespace`, in the node's cluster."""
    yield from _restricted_namespace(node.cluster)


def _keep_parameters_watched(cluster: ControlPlane) -> None:
    """A policy that matches nothing but takes a CronJob as parameter, as the silo chart's does.

    Once the last such binding is gone, an API server up to 1.36 never sees a parameter of that kind again (kubernetes/kubernetes#130887),
    and whichever test installs the chart next would be refused everything. README's known limits say what that means for a hospital.
    """
    policies = "/apis/admissionregistration.k8s.io/v1"
    nowhere = {"matchLabels": {"fedhelp.test/nowhere": "true"}}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    cluster.request("POST", f"{policies}/validatingadmissionpolicies", {"metadata": {"name": "watches-cronjobs"}, "spec": {
        "paramKind": {"apiVersion": "batch/v1", "kind": "CronJob"}, "validations": [{"expression": "true"}],
        "matchConstraints": {"namespaceSelector": nowhere, "resourceRules": [rule]}}})
    cluster.request("POST", f"{policies}/validatingadmissionpolicybindings", {"metadata": {"name": "watches-cronjobs"}, "spec": {
        "policyName": "watches-cronjobs", "validationActions": ["Deny"],
        "paramRef": {"name": "none", "namespace": "default", "parameterNotFoundAction": "Allow"}}})


def _restricted_namespace(cluster: ControlPlane) -> Iterator[str]:
    name = cluster.new_namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
