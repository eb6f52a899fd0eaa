"""A hospital that shares its GPUs through Kueue, with Kueue itself: chart, admission policy and dispatch as they are in production.

There is no kubelet: the cluster's only node has no free GPU, and tests say what containers did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from fedhelp_dispatch.lifecycle import Patience
from fedhelp_dispatch.remote import RemoteDispatcher
from fedhelp_dispatch.request import Work
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import built_or_skipped
from tests.cluster.hospital import Hospital, eventually, federation, hub_account, request_of, until_allowed
from tests.cluster.kueue import Kueue
from tests.cluster.releases import CHARTS, install
from tests.cluster.test_dispatch_kubernetes import RUN, end_of, runs, waits_for
from tests.cluster.test_hospital_trust import Hub

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
QUEUED = "queued by Kueue in queue 'gpus'"


@pytest.fixture(scope="module")
def kueue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    """In a cluster of its own: its webhooks see every Job."""
    built_or_skipped("kueue")
    with ControlPlane(tmp_path_factory.mktemp("kueue")) as cluster:
        cluster.kubectl("apply", "-f", str(CHARTS / "fedhelp-silo" / "keep-templates-watched.yaml"))
        yield Kueue(cluster).start()


@pytest.fixture
def account(kueue: Kueue, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's account; $KUBECONFIG is its."""
    account = hub_account(kueue.cluster)
    monkeypatch.setenv("KUBECONFIG", str(kueue.cluster.kubeconfig(account)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return account


@contextlib.contextmanager
def installed(kueue: Kueue, account: str, **values: object) -> Iterator[Hospital]:
    """A namespace with the chart installed; its queue has one GPU, of which nothing is given away yet."""
    hospital = Hospital(kueue.cluster, "universitaetsklinikum", account, install=False, role=False)
    kueue.add_queue("gpus", hospital.namespace, gpus=1)
    kueue.hold("gpus")
    _, _, home, name = account.split(":")
    install(kueue.cluster, "fedhelp-silo", hospital.namespace, "kueue", {
        "kueue": {"queueName": "gpus"}, "priorityClassName": "", "hub": {"subjects": [{"kind": "ServiceAccount", "namespace": home, "name": name}]},
        **values})
    until_allowed(kueue.cluster, account, namespace=hospital.namespace, verb="list", resource="events")
    Hub(kueue.cluster, str(kueue.cluster.kubeconfig(account)), hospital.namespace, home).wait_for_the_policy()
    yield hospital
    kueue.remove_queue("gpus", hospital.namespace)


@pytest.fixture
def hospital(kueue: Kueue, account: str) -> Iterator[Hospital]:
    with installed(kueue, account) as one:
        yield one


@pytest.fixture
def start() -> Iterator[Callable[[Hospital], Work]]:
    """Has the hub start a silo's training."""
    with contextlib.ExitStack() as stack:

        def started(hospital: Hospital) -> Work:
            config = federation(hospital).override(**{"store.url": "s3://federation/pneumonia", "store.endpoint_url": "http://minio.storage:9000"})
            dispatcher = RemoteDispatcher(RUN, Patience(refusal=2.0))
            stack.callback(dispatcher.close)
            return dispatcher.start(request_of(config, RUN, hospital.silo, "train"))

        yield started


def test_work_waits_in_the_queue_runs_when_admitted_and_goes_on_after_an_eviction(
    kueue: Kueue, hospital: Hospital, start: Callable[[Hospital], Work],
) -> None:
    work = start(hospital)
    assert "since 20" in waits_for(work, f"{QUEUED}: ClusterQueue gpus is inactive")
    kueue.release("gpus")
    waits_for(work, "no node can take its pod")
    hospital.run_pod()
    assert runs(work)
    kueue.drain("gpus")
    waits_for(work, f"{QUEUED}: ClusterQueue gpus is inactive")
    assert runs_nowhere(hospital)
    kueue.release("gpus")
    waits_for(work, "no node can take its pod")
    hospital.end_pod(0)
    assert end_of(work).done


def test_two_silos_that_share_one_gpu_take_turns_and_the_one_that_waits_says_what_for(
    kueue: Kueue, hospital: Hospital, account: str, start: Callable[[Hospital], Work],
) -> None:
    kueue.release("gpus")
    first = start(hospital)
    waits_for(first, "no node can take its pod")
    other = Hospital(kueue.cluster, "bonn", account, queue="gpus")
    kueue.add_local_queue("gpus", other.namespace)
    second = start(other)
    full = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor any-node, 1 more needed"
    waits_for(second, f"{QUEUED}: {full}")
    hospital.end_pod(0)
    assert end_of(first).done
    waits_for(second, "no node can take its pod")
    other.end_pod(0)
    assert end_of(second).done


def test_what_the_hospital_forgot_is_said(kueue: Kueue, account: str, start: Callable[[Hospital], Work]) -> None:
    """The chart names a priority class or a queue that the cluster does not have."""
    unknown = "not taken up yet; should it stay so, ask the hospital whether Kueue runs there and knows the priority class of its values"
    with installed(kueue, account, priorityClassName="research") as hospital:
        kueue.release("gpus")
        waits_for(start(hospital), f"{QUEUED}: {unknown}")
    waits_for(start(Hospital(kueue.cluster, "celle", account, queue="gpus")), f"{QUEUED}: LocalQueue gpus doesn't exist")


def runs_nowhere(hospital: Hospital) -> bool:
    """Whether no pod of the hospital is left."""
    return eventually(lambda: not hospital.cluster.request("GET", f"/api/v1/namespaces/{hospital.namespace}/pods")["items"])
