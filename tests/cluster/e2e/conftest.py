"""Two API servers, two nodes, three hospitals and a hub: started once, used by every end-to-end test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.e2e.hospitals import CREDENTIALS
from tests.cluster.e2e.world import World, build_images
from tests.cluster.node import Node


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The hub and two hospitals share a cluster; the third hospital has an API server and a node of its own."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        images = build_images()
        nodes = []
        for gpus in (2, 1):
            cluster = stack.enter_context(ControlPlane(tmp_path_factory.mktemp("cluster")))
            nodes.append(stack.enter_context(Node(cluster, gpus=gpus, images=images)))
        yield stack.enter_context(World(*nodes, tmp_path_factory.mktemp("world")))
