"""Two API servers, two nodes, three hospitals and a hub: started once, used by every end-to-end test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.e2e.hospitals import CREDENTIALS
from tests.cluster.e2e.world import World
from tests.cluster.node import Node


@pytest.fixture(scope="session")
def world(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The hub and two hospitals share `node`'s cluster; the third hospital has an API server and a node of its own."""
    folder: Path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield from _world(node, folder, tmp_path_factory)


def _world(node: Node, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ControlPlane(tmp_path_factory.mktemp("elsewhere")) as cluster, Node(cluster) as elsewhere, World(node, elsewhere, folder) as one:
        yield one
