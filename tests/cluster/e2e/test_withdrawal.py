"""Uninstalled, the charts leave nothing behind but data volumes. Last by its name: it takes the federation of the other tests apart."""

from __future__ import annotations

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.e2e.hospitals import HUB_NAMESPACE, helm
from tests.cluster.e2e.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def labelled(cluster: ControlPlane, release: str) -> list[str]:
    """Every object of any kind that carries the release's label; not volumes, nor versions, which Kubeflow removes with their pipeline."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    found = cluster.kubectl("get", ",".join(kinds), "-A", "-l", f"app.kubernetes.io/instance={release}", "-o", "name", "--ignore-not-found").split()
    return [name for name in found if not name.startswith(("persistentvolumeclaim/", "pipelineversion."))]


def test_the_charts_leave_nothing_behind_but_data_volumes(world: World) -> None:
    helm(world.node.cluster, HUB_NAMESPACE, "uninstall", "fedhelp-hub", "--wait")
    assert labelled(world.node.cluster, "fedhelp-hub") == []
    for hospital in world.hospitals:
        assert labelled(hospital.cluster, "fedhelp-silo")
        hospital.helm("uninstall", "fedhelp-silo", "--wait")
    for cluster in {id(hospital.cluster): hospital.cluster for hospital in world.hospitals}.values():
        assert labelled(cluster, "fedhelp-silo") == []
