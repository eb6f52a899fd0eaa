"""docs/operating.md, executed: its marked shell blocks, in order, by bash with real kubectl and helm against a real API server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.build import binary
from tests.cluster.control_plane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "operating.md"
NAMESPACES = ("fedhelp", "charite", "fedhelp-kleine-klinik", "clinic-charite")
_AS = {"tenant": {"HELM_KUBEASUSER": "kleine-klinik", "HELM_KUBEASGROUPS": "system:authenticated"}}
"""Who runs a block, where that is not the cluster's administrator."""
_BLOCK = re.compile(r"<!-- run: (?P<name>[a-z]+) -->\n```sh\n(?P<script>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def said(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each block printed. One cluster for both parties, no Kubeflow in it: the pipelines stay unregistered."""
    programs = tmp_path_factory.mktemp("bin")
    for name in ("kubectl", "helm"):
        (programs / name).symlink_to(binary(name))
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "KUBECONFIG": str(control_plane.kubeconfig()),
        "HUB_OPTIONS": "--set pipelines.enabled=false"}
    folder = tmp_path_factory.mktemp("guide")
    (folder / "helm").symlink_to(ROOT / "helm")
    printed = {"before": of_fedhelp_in_the_cluster(control_plane)}
    try:
        for block in _BLOCK.finditer(GUIDE.read_text(encoding="utf-8")):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block["script"]], cwd=folder, env=environment | _AS.get(block["name"], {}), capture_output=True,
                text=True, timeout=300)
            assert done.returncode == 0, f"block {block['name']}:\n{done.stdout}{done.stderr}"
            printed[block["name"]] = done.stdout + done.stderr
        yield printed
    finally:
        for name in NAMESPACES:
            control_plane.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
        control_plane.kubectl("delete", "clusterrole,clusterrolebinding", "fedhelp-work-agent", "--ignore-not-found")


def of_fedhelp_in_the_cluster(control_plane: ControlPlane) -> str:
    """Names, one a line, of what belongs to FedHelp and to no namespace: other tests' hospitals have theirs too."""
    kinds = control_plane.kubectl("api-resources", "--verbs=list", "--namespaced=false", "-o", "name").split()
    return control_plane.kubectl("get", ",".join(kinds), "-l", "app.kubernetes.io/part-of=fedhelp", "-o", "name", check=False)


def test_every_step_of_the_guide_works(said: dict[str, str]) -> None:
    assert list(said) == [
        "before", "hub", "images", "silo", "volumes", "administrator", "tenant", "kubeconfig", "renew", "agent", "works", "look", "upgrade",
        "uninstall", "withdraw", "forget"]


def test_the_hub_says_what_to_do_next(said: dict[str, str]) -> None:
    assert "Ask each hospital to install fedhelp-silo" in said["hub"]


def test_the_hospital_says_what_to_do_next(said: dict[str, str]) -> None:
    assert "helm test fedhelp-silo -n charite" in said["silo"]
    assert "fedhelp-worker" in said["silo"]


def test_a_hospital_may_make_a_pod_of_its_own_that_sees_its_volumes(said: dict[str, str]) -> None:
    assert "job.batch/hospital created" in said["volumes"]


def test_a_hospital_without_rights_on_the_cluster_installs_all_but_what_the_administrator_did(said: dict[str, str]) -> None:
    assert "fedhelp-worker.fedhelp-kleine-klinik" in said["administrator"]
    assert "resourcequota/fedhelp-worker created" in said["administrator"]
    assert "Hospital kleine-klinik can take part, once an administrator has installed its admission policy" in said["tenant"]


def test_the_hubs_kubeconfig_is_kept_in_a_secret(said: dict[str, str]) -> None:
    assert "secret/fedhelp-kubeconfig created" in said["renew"]


def test_an_agent_with_the_guides_rights_may_not_change_the_template(said: dict[str, str]) -> None:
    assert "clusterrole.rbac.authorization.k8s.io/fedhelp-work-agent created" in said["agent"]
    assert said["agent"].rstrip().endswith("as it should be")


def test_the_guide_shows_what_the_hub_may_do(said: dict[str, str]) -> None:
    assert re.search(r"jobs.batch .*\[create get list watch delete\]", said["look"])
    assert "secrets" not in said["look"]


def test_an_upgrade_changes_the_template(said: dict[str, str]) -> None:
    assert "43200" in said["upgrade"]


def test_after_uninstalling_only_the_state_volume_is_left(said: dict[str, str], control_plane: ControlPlane) -> None:
    assert "fedhelp-state" in said["uninstall"]
    kinds = control_plane.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    look = ("get", ",".join(kinds), "-l", "app.kubernetes.io/part-of=fedhelp", "-o", "name")
    found = [line for place in NAMESPACES for line in control_plane.kubectl(*look, "-n", place, check=False).split()]
    policies = control_plane.kubectl("get", "validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name")

    assert [line for line in found if not line.startswith("persistentvolumeclaim/")] == []
    assert set(of_fedhelp_in_the_cluster(control_plane).split()) <= set(said["before"].split())
    assert "fedhelp-worker.charite" not in policies
    assert "fedhelp-worker.fedhelp-kleine-klinik" not in policies


def test_marked_blocks_are_all_found() -> None:
    assert GUIDE.read_text().count("<!-- run:") == len(_BLOCK.findall(GUIDE.read_text()))
