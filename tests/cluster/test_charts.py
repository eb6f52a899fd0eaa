"""Both charts on a real API server: every variant as the server sees it, and what a release leaves behind."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.cluster.build import binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.releases import CHARTS, helm, install, uninstall

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# Kinds of other products that a bare API server does not know; their objects are checked by rendering (tests/helm).
FOREIGN = {"PodMonitor", "PrometheusRule", "Pipeline", "PipelineVersion"}
APIS = (
    "monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule",
    "pipelines.kubeflow.org/v2beta1/Pipeline", "pipelines.kubeflow.org/v2beta1/PipelineVersion",
)
VARIANTS = [
    (chart, path.name.removesuffix("-values.yaml"))
    for chart in ("fedhelp-silo", "fedhelp-hub") for path in sorted((CHARTS / chart / "ci").glob("*-values.yaml"))
]
WITHOUT_KUBEFLOW = {"pipelines": {"enabled": False}}


def rendered(cluster: ControlPlane, chart: str, variant: str, namespace: str) -> list[dict[str, Any]]:
    text = helm(
        cluster, "template", chart, CHARTS / chart, "--namespace", namespace, "--values", CHARTS / chart / "ci" / f"{variant}-values.yaml",
        *(word for api in APIS for word in ("--api-versions", api)))
    return [found for found in yaml.safe_load_all(text) if found and found["kind"] not in FOREIGN]


def labelled(cluster: ControlPlane, namespace: str) -> set[str]:
    """Everything of the product in a namespace, and its cluster-scoped policies, as kind/name."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
    inside = cluster.kubectl("get", ",".join(kinds), "-n", namespace, "-l", "app.kubernetes.io/part-of=fedhelp", "-o", "name", check=False)
    policies = cluster.kubectl("get", "validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name")
    return {*inside.split(), *(line for line in policies.split() if line.endswith(f".{namespace}"))}


@pytest.mark.parametrize(("chart", "variant"), VARIANTS)
def test_every_variant_is_taken_by_the_api_server_as_it_is(chart: str, variant: str, control_plane: ControlPlane, namespace: str) -> None:
    objects = rendered(control_plane, chart, variant, namespace)

    answer = control_plane.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-",
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    assert len(answer.split()) == len(objects)


@pytest.mark.parametrize(("chart", "variant"), VARIANTS)
def test_pods_of_every_variant_pass_the_restricted_level(chart: str, variant: str, control_plane: ControlPlane, namespace: str) -> None:
    for found in rendered(control_plane, chart, variant, namespace):
        job = found["spec"]["jobTemplate"] if found["kind"] == "CronJob" else found
        if job.get("kind", "Job") not in ("Job", "Deployment") or "template" not in job.get("spec", {}):
            continue
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}, "spec": job["spec"]["template"]["spec"]}
        for dropped in ("serviceAccountName", "runtimeClassName", "priorityClassName"):  # not there yet; Pod Security is what is asked about
            pod["spec"].pop(dropped, None)

        answer = subprocess.run(
            [binary("kubectl"), f"--kubeconfig={control_plane.kubeconfig()}", "create", "--dry-run=server", "-f", "-"],
            input=json.dumps(pod), capture_output=True, text=True)

        assert answer.returncode == 0, answer.stderr


def test_a_silo_is_installed_upgraded_and_gone_but_for_its_state(control_plane: ControlPlane, namespace: str) -> None:
    install(control_plane, "fedhelp-silo", namespace, "shared-cluster")
    first = labelled(control_plane, namespace)
    install(control_plane, "fedhelp-silo", namespace, "shared-cluster", {"gpu": {"count": 2}})
    template = json.loads(control_plane.kubectl("get", "cronjob", "fedhelp-worker", "-n", namespace, "-o", "json"))
    uninstall(control_plane, "fedhelp-silo", namespace)

    assert {"cronjob.batch/fedhelp-worker", "role.rbac.authorization.k8s.io/fedhelp-hub"} <= first
    assert template["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert labelled(control_plane, namespace) == {"persistentvolumeclaim/fedhelp-state"}


def test_a_silo_installed_again_finds_its_state(control_plane: ControlPlane, namespace: str) -> None:
    def claim() -> str:
        return control_plane.kubectl("get", "pvc", "fedhelp-state", "-n", namespace, "-o", "jsonpath={.metadata.uid}")

    install(control_plane, "fedhelp-silo", namespace, "shared-cluster")
    first = claim()
    uninstall(control_plane, "fedhelp-silo", namespace)
    install(control_plane, "fedhelp-silo", namespace, "shared-cluster")

    assert claim() == first
    uninstall(control_plane, "fedhelp-silo", namespace)


def test_a_hub_is_installed_upgraded_and_gone(control_plane: ControlPlane, namespace: str) -> None:
    install(control_plane, "fedhelp-hub", namespace, "shared-cluster", WITHOUT_KUBEFLOW)
    first = labelled(control_plane, namespace)
    install(control_plane, "fedhelp-hub", namespace, "shared-cluster", {**WITHOUT_KUBEFLOW, "metrics": {"pushgateway": "gateway:9091"}})
    uninstall(control_plane, "fedhelp-hub", namespace)

    assert {"configmap/fedhelp-federation", "serviceaccount/fedhelp-runs"} <= first
    assert labelled(control_plane, namespace) == set()
