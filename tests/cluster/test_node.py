"""The node that tests share is a real one: its pods run as containers, see their API server and get the GPU that they ask for."""

from __future__ import annotations

import json

import pytest

from tests.cluster.build import binary
from tests.cluster.node import Node
from tests.cluster.test_control_plane import job

pytestmark = pytest.mark.e2e
IMAGE = "fedhelp.test/say:1"


@pytest.fixture(scope="module")
def image(node: Node) -> str:
    node.import_program(IMAGE, binary("pause"), ["/pause"])
    return IMAGE


def test_a_restricted_job_that_asks_for_a_gpu_runs_to_completion_and_shows_its_log(node: Node, node_namespace: str, image: str) -> None:
    kubectl = node.cluster.kubectl
    kubectl("-n", node_namespace, "apply", "-f", "-", input=json.dumps(job("greets", image, args=["hello", "hospital"])))
    kubectl("-n", node_namespace, "wait", "--for=condition=complete", "job/greets", "--timeout=60s")
    assert kubectl("-n", node_namespace, "logs", "job/greets") == "hello hospital\n"


def test_a_job_waits_while_another_holds_the_gpu_and_the_scheduler_says_why(node: Node, node_namespace: str, image: str) -> None:
    kubectl = node.cluster.kubectl
    everything = job("holds", image, resources={"limits": {"nvidia.com/gpu": str(node.gpus)}})
    kubectl("-n", node_namespace, "apply", "-f", "-", input=json.dumps(everything))
    kubectl("-n", node_namespace, "wait", "--for=condition=ready", "pod", "--selector=job-name=holds", "--timeout=60s")
    kubectl("-n", node_namespace, "apply", "-f", "-", input=json.dumps(job("waits", image, args=["my turn"])))
    kubectl("-n", node_namespace, "wait", "--for=condition=PodScheduled=false", "pod", "--selector=job-name=waits", "--timeout=60s")
    reason = kubectl("-n", node_namespace, "get", "pod", "--selector=job-name=waits", "-o", "jsonpath={.items[0].status.conditions[0].message}")
    assert "Insufficient nvidia.com/gpu" in reason
    kubectl("-n", node_namespace, "delete", "job", "holds")
    kubectl("-n", node_namespace, "wait", "--for=condition=complete", "job/waits", "--timeout=60s")
