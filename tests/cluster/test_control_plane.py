"""The control plane that tests share is a real one: it authenticates, authorises, admits, schedules and runs Jobs."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.cluster.control_plane import ControlPlane, write_kubeconfig

pytestmark = pytest.mark.cluster


def connected(kubeconfig: Path) -> Any:
    return config.new_client_from_config(str(kubeconfig))


def job(name: str, image: str, **container: Any) -> dict[str, Any]:
    """A Job that the `restricted` Pod Security level admits, asking for a GPU."""
    security = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    one = {"name": "work", "image": image, "securityContext": security, "resources": {"limits": {"nvidia.com/gpu": "1"}}, **container}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [one]}}}}


def test_a_service_account_may_do_what_its_role_grants_and_nothing_else(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("-n", namespace, "create", "serviceaccount", "hub")
    control_plane.kubectl("-n", namespace, "create", "role", "jobs", "--verb=create,get", "--resource=jobs")
    control_plane.kubectl("-n", namespace, "create", "rolebinding", "hub", "--role=jobs", f"--serviceaccount={namespace}:hub")
    hub = connected(control_plane.kubeconfig(f"system:serviceaccount:{namespace}:hub"))
    client.BatchV1Api(hub).create_namespaced_job(namespace, job("allowed", "image:1"), dry_run="All")
    with pytest.raises(client.ApiException) as refused:
        client.CoreV1Api(hub).list_namespaced_secret(namespace)
    assert refused.value.status == 403 and f"system:serviceaccount:{namespace}:hub" in json.loads(refused.value.body)["message"]


def test_a_user_is_known_by_a_client_certificate_with_its_groups(control_plane: ControlPlane) -> None:
    doctor = connected(control_plane.kubeconfig("doctor", groups=["hospital-a"]))
    user = client.AuthenticationV1Api(doctor).create_self_subject_review({}).status.user_info
    assert user.username == "doctor" and "hospital-a" in user.groups


def test_a_kubeconfig_that_is_written_again_while_others_read_it_is_whole_at_every_moment(tmp_path: Path) -> None:
    """A run's tasks and the test around it call kubectl at the same time, and each call writes the administrator's file."""
    def write() -> Path:
        return write_kubeconfig(tmp_path, "admin", {"server": "https://127.0.0.1:1"}, {"token": "t" * 4000})

    path = write()
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        writers = [pool.submit(lambda: [write() for _ in range(1000)]) for _ in range(2)]
        while not all(writer.done() for writer in writers):
            assert json.loads(path.read_text())["current-context"] == "admin"
    assert [one.name for one in tmp_path.iterdir()] == ["admin.yaml"] and path.stat().st_mode & 0o777 == 0o600


def test_a_privileged_pod_is_refused_where_the_namespace_enforces_the_restricted_level(control_plane: ControlPlane, namespace: str) -> None:
    administrator = connected(control_plane.kubeconfig())
    pod = job("x", "image:1", securityContext={"privileged": True})["spec"]["template"] | {"metadata": {"name": "privileged"}}
    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        client.CoreV1Api(administrator).create_namespaced_pod(namespace, pod)


@pytest.fixture(scope="module")
def disposable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane for what other tests must not meet: nodes that their pods would run on, an API server that goes away."""
    with ControlPlane(tmp_path_factory.mktemp("disposable")) as cluster:
        yield cluster


def test_a_job_runs_on_a_pretended_node(disposable: ControlPlane) -> None:
    disposable.add_kwok_nodes(1)
    name = disposable.new_namespace()
    disposable.kubectl("-n", name, "apply", "-f", "-", input=json.dumps(job("pretended", "image:1")))
    disposable.kubectl("-n", name, "wait", "--for=condition=complete", "job/pretended", "--timeout=60s")


def test_the_api_server_comes_back_with_its_data_at_the_same_address(disposable: ControlPlane) -> None:
    name = disposable.new_namespace()
    disposable.stop_api_server()
    with pytest.raises(OSError, match="refused"):
        disposable.request("GET", "/readyz")
    disposable.start_api_server()
    assert disposable.request("GET", f"/api/v1/namespaces/{name}")["metadata"]["name"] == name
