"""pytest fixtures over control_plane.py and node.py.

A test folder elsewhere gets them with two lines in its conftest.py:

    from tests.cluster.fixtures import control_plane, namespace
    __all__ = ["control_plane", "namespace"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import NotServed, binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import hub_account
from tests.cluster.node import Node
from tests.cluster.releases import CHARTS


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server with its controllers, shared by all tests of the session: make namespaces, never edit what others see."""
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.kubectl("apply", "-f", str(CHARTS / "fedhelp-silo" / "keep-templates-watched.yaml"))  # tests install and uninstall silos
        yield cluster


def built_or_skipped(program: str) -> Path:
    """A program that tests do without where its Go module is not served: then whatever calls this is skipped, and says so."""
    try:
        return binary(program)
    except NotServed as e:
        pytest.skip(str(e))


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


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes $KUBECONFIG one of `identity`, changed by `change`."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    def use(identity: str, change: Callable[[dict[str, Any]], None] = lambda _document: None) -> None:
        document = yaml.safe_load(control_plane.kubeconfig(identity).read_text())
        change(document)
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(path))

    return use


@pytest.fixture
def account(control_plane: ControlPlane, kubeconfig: Callable[..., None]) -> str:
    """A hub's account that no hospital has let in yet; $KUBECONFIG is its."""
    account = hub_account(control_plane)
    kubeconfig(account)
    return account


def _restricted_namespace(cluster: ControlPlane) -> Iterator[str]:
    name = cluster.new_namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")
