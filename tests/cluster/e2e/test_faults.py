"""What goes wrong in a hospital or at the hub changes when a run ends, never the model; a silo that stays away is left out and named."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import yaml

from fedhelp_core.protocol.run import Run
from tests.cluster.build import binary
from tests.cluster.e2e.graph import GraphRun, TaskFailed
from tests.cluster.e2e.hospitals import HUB_NAMESPACE, Hospital
from tests.cluster.e2e.world import World
from tests.cluster.fixtures import built_or_skipped
from tests.cluster.kueue import Kueue
from tests.cluster.processes import wait_for
from tests.cluster.test_control_plane import job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def expected(world: World) -> str:
    """The model's sha256 when nothing goes wrong."""
    return world.simulated_sha256()


@contextmanager
def running(world: World, run_id: str, **changes: object) -> Iterator[GraphRun]:
    """A run in the background; leaves when it has ended, and raises what it raised."""
    run = world.new_run()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(run.run, {"run_id": run_id, **changes})
        try:
            yield run
        except BaseException:
            run.cancel()
            raise
        future.result()


def job_of(hospital: Hospital, run_id: str, action: str) -> str:
    """The name of the Job that does `action` there, once it is made."""
    found: list[str] = []

    def there() -> bool:
        found[:] = [one["metadata"]["name"] for one in hospital.jobs(f"fedhelp.io/run={run_id},fedhelp.io/action={action}")]
        return bool(found)

    assert wait_for(there, 300, pause=0.5), f"no Job for {action} in {hospital.namespace}"
    return found[0]


def kill_pod(hospital: Hospital, name: str) -> None:
    hospital.cluster.kubectl("-n", hospital.namespace, "delete", "pod", "-l", f"job-name={name}", "--grace-period=0", "--force")


def delete_job(hospital: Hospital, name: str) -> None:
    hospital.cluster.kubectl("-n", hospital.namespace, "delete", "job", name)


def stop_api_server(hospital: Hospital, _name: str) -> None:
    hospital.cluster.stop_api_server()
    time.sleep(30)
    hospital.cluster.start_api_server()


def drain_node(hospital: Hospital, _name: str) -> None:
    """Evict everything from the hospital's node, as for a kernel update, and bring it back."""
    kubectl = hospital.cluster.kubectl
    kubectl("drain", hospital.node.name, "--force", "--delete-emptydir-data", "--timeout=120s")
    kubectl("uncordon", hospital.node.name)


@pytest.mark.parametrize(
    ("silo", "fault"), [("north", kill_pod), ("south", delete_job), ("west", stop_api_server), ("west", drain_node)])
def test_a_disturbed_run_ends_in_the_same_model(world: World, expected: str, silo: str, fault: Callable[[Hospital, str], None]) -> None:
    run_id = fault.__name__.replace("_", "-")
    with running(world, run_id):
        name = job_of(world.hospital(silo), run_id, "train")
        world.wait_for_round(run_id, 1)
        fault(world.hospital(silo), name)
    assert world.final_sha256(run_id) == expected


def test_a_job_that_kueue_admits_evicts_and_admits_again_ends_in_the_same_model(world: World, expected: str) -> None:
    south = world.hospital("south")
    held = "queued by Kueue in queue 'gpus': ClusterQueue gpus is inactive (since 20"
    with kueue_in(south) as kueue, running(world, "queued") as run:
        job_of(south, "queued", "check")
        kueue.release("gpus")
        assert wait_for(lambda: any(one.task == "check" and one.ended is not None for one in run.tasks), 300, pause=0.2)
        kueue.hold("gpus")
        job_of(south, "queued", "train")
        pod = run.task("train-south").pod
        assert wait_for(lambda: held in log_of(world, pod), 120, pause=1), log_of(world, pod)
        kueue.release("gpus")
        world.wait_for_round("queued", 1)
        kueue.drain("gpus")
        assert wait_for(lambda: log_of(world, pod).count(held) == 2, 120, pause=1), log_of(world, pod)
        kueue.release("gpus")
    assert world.final_sha256("queued") == expected


@contextmanager
def kueue_in(hospital: Hospital) -> Iterator[Kueue]:
    """The hospital's GPUs are shared through Kueue, whose queue is held for now."""
    built_or_skipped("kueue")
    kueue = Kueue(hospital.cluster).start()
    try:
        kueue.add_queue("gpus", hospital.namespace, gpus=1)
        kueue.hold("gpus")
        hospital.upgrade(kueue={"queueName": "gpus"})
        yield kueue
        hospital.upgrade(kueue={"queueName": ""})
        kueue.remove_queue("gpus", hospital.namespace)
    finally:
        kueue.stop()


def test_a_run_whose_hub_pods_were_killed_goes_on_where_it_was_when_it_is_started_again(world: World, expected: str) -> None:
    with pytest.raises(TaskFailed):
        kill_hub_in_round_2(world, "hub-killed")
    world.new_run().run({"run_id": "hub-killed"})
    assert world.final_sha256("hub-killed") == expected


def kill_hub_in_round_2(world: World, run_id: str) -> None:
    with running(world, run_id) as run:
        world.wait_for_round(run_id, 1)
        pods = [run.task("aggregation").pod, run.task("train-north").pod]
        world.node.cluster.kubectl("-n", HUB_NAMESPACE, "delete", "pod", *pods, "--grace-period=0", "--force", "--ignore-not-found")


def test_a_silo_that_is_frozen_past_the_deadline_is_left_out_and_named(world: World) -> None:
    west = world.hospital("west")
    impatient = {**world.document, "protocol": {**world.document["protocol"], "round_deadline": 25.0}}
    world.store().put_new("impatient.yaml", yaml.safe_dump(impatient).encode())
    with running(world, "frozen", federation=f"{world.document['store']['url']}/impatient.yaml"):
        name = job_of(west, "frozen", "train")
        world.wait_for_round("frozen", 1)
        west.node.freeze(west.namespace, name)
    last = Run(world.store(), "frozen").latest_commit()
    assert last is not None and last.round == 3
    assert set(last.participants) >= {"north", "south"} and "west" not in last.participants and last.absent["west"]


def test_while_the_gpus_are_busy_the_jobs_wait_and_the_log_says_why(world: World, expected: str) -> None:
    cluster, node = world.node.cluster, world.node
    node.import_program("fedhelp.test/say:1", binary("pause"), ["/pause"])
    busy = cluster.new_namespace("busy")
    holder = job("holds", "fedhelp.test/say:1", resources={"limits": {"nvidia.com/gpu": str(node.gpus)}})
    cluster.kubectl("-n", busy, "apply", "-f", "-", input=json.dumps(holder))
    cluster.kubectl("-n", busy, "wait", "--for=condition=ready", "pod", "--selector=job-name=holds", "--timeout=60s")
    with running(world, "busy") as run:
        assert wait_for(lambda: bool(run.tasks) and "Insufficient nvidia.com/gpu" in log_of(world, run.task("check").pod), 120, pause=1)
        cluster.kubectl("delete", "namespace", busy)
    assert world.final_sha256("busy") == expected


def log_of(world: World, pod: str) -> str:
    return world.node.cluster.kubectl("-n", HUB_NAMESPACE, "logs", pod, check=False)
