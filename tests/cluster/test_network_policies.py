"""The hospital's chart on a node that enforces NetworkPolicies: what a worker's pod reaches, and who reaches it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.cluster.build import binary
from tests.cluster.control_plane import SERVICE_ADDRESS
from tests.cluster.fixtures import built_or_skipped
from tests.cluster.kube_router import PolicyEnforcer, can_enforce
from tests.cluster.machine import run
from tests.cluster.node import Node
from tests.cluster.processes import free_ports, wait_for
from tests.cluster.releases import install
from tests.cluster.test_control_plane import job
from tests.cluster.test_node import IMAGE

pytestmark = pytest.mark.e2e
WORKER = {"app.kubernetes.io/name": "fedhelp-silo", "app.kubernetes.io/part-of": "fedhelp", "fedhelp.io/silo": "charite"}
DNS = {"k8s-app": "kube-dns"}
TRY = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
SERVE = "import socket, sys, time; kept = [socket.create_server(('', int(one))) for one in sys.argv[1:]]; print('ready', flush=True); time.sleep(600)"


@dataclass(frozen=True)
class Pod:
    """A running pod that does nothing; this machine's Python speaks for it, in its network namespace."""

    address: str
    netns: str

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection comes about."""
        return run("ip", "netns", "exec", self.netns, sys.executable, "-c", TRY, address, str(port), check=False).returncode == 0


def start_pod(node: Node, namespace: str, name: str, labels: dict[str, str]) -> Pod:
    small = {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "1Mi"}
    spec = job(name, IMAGE, resources={"requests": small, "limits": small})["spec"]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
    node.cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(pod))
    node.cluster.kubectl("-n", namespace, "wait", "--for=condition=ready", f"pod/{name}", "--timeout=60s")
    address = node.cluster.kubectl("-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
    return Pod(address, node.network_namespace(address))


def serve(stack: ExitStack, ports: list[int], pod: Pod | None = None) -> None:
    """Listen on `ports` of this machine or of a pod."""
    inside = ["ip", "netns", "exec", pod.netns] if pod is not None else []
    server = stack.enter_context(subprocess.Popen(
        [*inside, sys.executable, "-c", SERVE, *map(str, ports)], stdout=subprocess.PIPE, text=True))
    stack.callback(server.kill)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"


@dataclass(frozen=True)
class Scene:
    """A hospital's namespace and who is around it."""

    worker: Pod
    other: Pod
    """In the hospital's namespace, without a worker's labels."""
    scraper: Pod
    """In the namespace that metrics.namespace names."""
    dns: Pod
    machine: str
    store: int
    elsewhere: int
    """Ports of this machine."""


@pytest.fixture(scope="module")
def scene(node: Node) -> Iterator[Scene]:
    """Everybody can reach everybody until the policies are enforced."""
    built_or_skipped("kube-router")
    if not can_enforce():
        pytest.skip("this machine's kernel has no ipsets, which kube-router needs")
    node.import_program(IMAGE, binary("pause"), ["/pause"])
    cluster, (store, elsewhere) = node.cluster, free_ports(2)
    hospital = cluster.new_namespace("hospital", {"pod-security.kubernetes.io/enforce": "restricted"})
    monitoring = cluster.new_namespace("monitoring")
    install(cluster, "fedhelp-silo", hospital, "shared-cluster", {
        "store": {"network": [{"cidr": f"{node.gateway}/32", "ports": [store]}]}, "metrics": {"namespace": monitoring}})
    with ExitStack() as stack:
        scene = Scene(
            worker=start_pod(node, hospital, "worker", WORKER), other=start_pod(node, hospital, "other", {}),
            scraper=start_pod(node, monitoring, "scraper", {}), dns=start_pod(node, "kube-system", "dns", DNS), machine=node.gateway,
            store=store, elsewhere=elsewhere)
        stack.callback(cluster.kubectl, "-n", "kube-system", "delete", "pod", "dns", "--wait=false")
        serve(stack, [store, elsewhere])
        serve(stack, [9090, 9091], scene.worker)
        serve(stack, [53, 54], scene.dns)
        assert all((
            scene.worker.reaches(scene.machine, elsewhere), scene.other.reaches(scene.machine, store), scene.worker.reaches(SERVICE_ADDRESS, 443),
            scene.other.reaches(scene.worker.address, 9090), scene.scraper.reaches(scene.worker.address, 9091)))
        stack.enter_context(PolicyEnforcer(node))
        assert wait_for(lambda: not scene.worker.reaches(scene.machine, elsewhere), 60, pause=1)
        yield scene


def test_a_worker_reaches_its_store_and_dns_and_nothing_else(scene: Scene) -> None:
    assert scene.worker.reaches(scene.machine, scene.store)
    assert scene.worker.reaches(scene.dns.address, 53)
    assert not scene.worker.reaches(scene.machine, scene.elsewhere), "another port of the store's machine"
    assert not scene.worker.reaches(scene.dns.address, 54), "another port of the DNS server"
    assert not scene.worker.reaches(SERVICE_ADDRESS, 443), "the API server"
    assert not scene.worker.reaches(scene.scraper.address, 9090), "another namespace"


def test_its_metrics_are_read_from_the_monitoring_namespace_alone(scene: Scene) -> None:
    assert scene.scraper.reaches(scene.worker.address, 9090)
    assert not scene.scraper.reaches(scene.worker.address, 9091), "another port"
    assert not scene.other.reaches(scene.worker.address, 9090), "another pod of the hospital"


def test_whatever_else_runs_in_the_namespace_reaches_nothing(scene: Scene) -> None:
    assert not scene.other.reaches(scene.machine, scene.store)
    assert not scene.other.reaches(scene.dns.address, 53)
    assert scene.scraper.reaches(scene.machine, scene.elsewhere), "other namespaces are left alone"
