"""A cluster's only silo is uninstalled and comes back: what helm/fedhelp-silo/keep-templates-watched.yaml is for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.cluster.releases import CHARTS, install, uninstall
from tests.cluster.test_hospital_trust import Hub, container_of

_UNTIL_FORGOTTEN = 5.0  # seconds: the API server looks every second which parameters its policies still name

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_silo_that_comes_back_is_judged_by_its_new_template(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as cluster:
        cluster.kubectl("apply", "-f", str(CHARTS / "fedhelp-silo" / "keep-templates-watched.yaml"))
        hospital, home = cluster.new_namespace("hospital", {"pod-security.kubernetes.io/enforce": "restricted"}), cluster.new_namespace("hub")
        cluster.request("POST", f"/api/v1/namespaces/{home}/serviceaccounts", {"metadata": {"name": "fedhelp-runs"}})
        account = {"hub": {"subjects": [{"kind": "ServiceAccount", "name": "fedhelp-runs", "namespace": home}]}}
        hub = Hub(cluster, str(cluster.kubeconfig(f"system:serviceaccount:{home}:fedhelp-runs")), hospital, home)

        install(cluster, "fedhelp-silo", hospital, "shared-cluster", account)
        hub.wait_for_the_policy()
        before = hub.job()
        uninstall(cluster, "fedhelp-silo", hospital)
        time.sleep(_UNTIL_FORGOTTEN)
        install(cluster, "fedhelp-silo", hospital, "shared-cluster", {**account, "activeDeadlineSeconds": 43200, "gpu": {"count": 2}})
        hub.wait_for_the_policy()

        assert hub.create(hub.job()).startswith("job.batch/")
        refused = hub.create(before)
        assert "fixes the container's resources" in refused
        assert container_of(before)["resources"]["limits"]["nvidia.com/gpu"] == "1"
