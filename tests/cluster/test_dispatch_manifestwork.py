"""Dispatch `manifestwork` on two real API servers: Open Cluster Management's hub, and a hospital that only dials out.

The agent between them is OCM's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.errors import AccessDenied
from fedhelp_dispatch.job import QUEUE_LABEL
from fedhelp_dispatch.lifecycle import Patience
from fedhelp_dispatch.preflight import preflight
from fedhelp_dispatch.remote import RemoteDispatcher
from fedhelp_dispatch.request import Work
from fedhelp_dispatch.routing import RoutingDispatcher
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import built_or_skipped
from tests.cluster.hospital import Hospital, context_named, eventually, hub_account, request_of, template, until_allowed
from tests.cluster.ocm import GROUP, WorkAgent, agent_account, install_applied_works, install_works
from tests.cluster.releases import CHARTS, install
from tests.cluster.test_hospital_trust import Hub

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
RUN = "run-1"
WORKS = f"/apis/{GROUP}/v1/namespaces"


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The hospital's own cluster."""
    built_or_skipped("ocm-work-agent")
    with ControlPlane(tmp_path_factory.mktemp("clinic")) as cluster:
        install_applied_works(cluster)
        yield cluster


@pytest.fixture
def managed(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hospital's namespace on the OCM hub, where the federation's hub may keep works; $KUBECONFIG is its account's."""
    built_or_skipped("ocm-work-agent")
    install_works(control_plane)
    namespace, account = control_plane.new_namespace("clinic"), hub_account(control_plane)
    control_plane.kubectl("-n", namespace, "create", "role", "works", "--verb=create,get,list,watch,delete",
                          "--resource=manifestworks.work.open-cluster-management.io")
    control_plane.kubectl("-n", namespace, "create", "rolebinding", "works", "--role=works",
                          f"--serviceaccount={account.removeprefix('system:serviceaccount:')}")
    until_allowed(control_plane, account, namespace=namespace, verb="watch", resource="manifestworks", group=GROUP)
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(account)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return namespace


def written(folder: Path, *silos: dict[str, Any]) -> Federation:
    """A federation read from its file, as a hub reads it."""
    path = folder / "federation.yaml"
    path.write_text(yaml.safe_dump({
        "name": "test", "algorithm": {"method": "fedavg", "rounds": 2}, "store": {"url": "s3://exchange/test"}, "silos": list(silos)}))
    return load_federation(path)


def exported(folder: Path, silo: str, **of_template: Any) -> str:
    """The hospital's CronJob as a file, with what an API server adds."""
    document = template(silo, **of_template)
    document["metadata"] |= {"uid": "1", "resourceVersion": "7", "managedFields": []}
    (folder / f"{silo}.yaml").write_text(yaml.safe_dump({**document, "status": {}}))
    return f"{silo}.yaml"


def entry(folder: Path, silo: str, managed: str, namespace: str, **of_template: Any) -> dict[str, Any]:
    return {"name": silo, "dispatch": {
        "kind": "manifestwork", "cluster": managed, "namespace": namespace, "job_template": exported(folder, silo, **of_template)}}


def works(cluster: ControlPlane, managed: str) -> list[dict[str, Any]]:
    """The hospital's ManifestWorks."""
    return list(cluster.request("GET", f"{WORKS}/{managed}/manifestworks")["items"])


def waits_for(work: Work, words: str) -> str:
    def look() -> str | None:
        assert work.outcome() is None, work.outcome()
        waiting = work.waiting()
        return str(waiting) if waiting is not None and words in waiting.reason else None

    return eventually(look)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    dispatchers: list[Any] = []

    def start(config: Federation, silo: str, action: str = "check") -> Work:
        dispatchers.append(RemoteDispatcher(RUN, Patience(refusal=2.0)))
        return dispatchers[-1].start(request_of(config, RUN, silo, action))  # type: ignore[no-any-return, arg-type]

    yield start
    for dispatcher in dispatchers:
        dispatcher.close()


def test_the_agent_fetches_the_job_and_its_status_comes_back(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace)), "aachen")
    waits_for(work, "the hospital's agent has not fetched it yet")
    with WorkAgent(control_plane, managed, clinic):
        waits_for(work, "its Job has no running pod; only the hospital sees why")
        (kept,) = works(control_plane, managed)
        config = kept["spec"]["manifestConfigs"][0]
        assert (config["updateStrategy"], len(config["feedbackRules"][0]["jsonPaths"])) == ({"type": "CreateOnly"}, 10), "nothing was dropped"
        assert kept["spec"]["deleteOption"] == {"propagationPolicy": "Foreground", "ttlSecondsAfterFinished": 86400}
        there.run_pod()
        eventually(lambda: work.waiting() is None)
        there.end_pod(0)
        assert eventually(work.outcome).done


@pytest.mark.parametrize(("code", "expected", "permanent"), [(11, 11, True), (30, 1, False)])
def test_a_failed_job_comes_back_with_what_its_condition_says(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path, code: int, expected: int, permanent: bool,
) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace)), "aachen")
    with WorkAgent(control_plane, managed, clinic):
        there.end_pod(code)
        outcome = eventually(work.outcome)
    assert (outcome.exit_code, outcome.permanent) == (expected, permanent)
    assert "kubectl logs job/run-1-aachen-check-" in outcome.reason


def test_a_namespace_that_the_hospital_has_not_is_named(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, "nowhere")), "aachen")
    with WorkAgent(control_plane, managed, clinic):
        outcome = eventually(work.outcome)
        assert works(control_plane, managed) == [], "the agent would try again, long after the run"
    assert outcome.exit_code == 14 and 'namespaces "nowhere" not found' in outcome.reason
    assert "ask the hospital to install its chart in namespace 'nowhere', or correct dispatch.namespace" in outcome.reason


def test_a_quota_is_waited_for(control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    there.quota(**{"count/jobs.batch": "0"})
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace)), "aachen")
    with WorkAgent(control_plane, managed, clinic):
        waits_for(work, "the hospital's cluster does not take the Job: the namespace's quota gpus is used up (requested: count/jobs.batch=1")
        clinic.kubectl("-n", there.namespace, "delete", "resourcequota", "gpus")
        waits_for(work, "its Job has no running pod")


class TestChart:
    """The hospital's chart, its policy in force, and an agent that may do no more than it must."""

    @pytest.fixture(scope="class")
    def agent(self, clinic: ControlPlane) -> str:
        return agent_account(clinic)

    @pytest.fixture(scope="class")
    def there(self, clinic: ControlPlane, agent: str) -> Hospital:
        clinic.kubectl("apply", "-f", str(CHARTS / "fedhelp-silo" / "keep-templates-watched.yaml"))
        there = Hospital(clinic, "charite", "", install=False, role=False)
        _, _, home, name = agent.split(":")
        install(clinic, "fedhelp-silo", there.namespace, "shared-cluster", {
            "hub": {"subjects": [{"kind": "ServiceAccount", "namespace": home, "name": name}]}})
        Hub(clinic, str(clinic.kubeconfig(agent)), there.namespace, home).wait_for_the_policy()
        return there

    @pytest.fixture
    def federation_with(self, managed: str, there: Hospital, tmp_path: Path) -> Callable[..., Federation]:
        """Of the hospital with its exported template, which `change` may spoil."""

        def make(change: Callable[[dict[str, Any]], None] = lambda _: None, **dispatch: str) -> Federation:
            template = json.loads(there.cluster.kubectl("-n", there.namespace, "get", "cronjob", "fedhelp-worker", "-o", "json"))
            change(template["spec"]["jobTemplate"]["spec"]["template"]["spec"])
            (tmp_path / "charite.yaml").write_text(yaml.safe_dump(template))
            silo = {"kind": "manifestwork", "cluster": managed, "namespace": there.namespace, "job_template": "charite.yaml", **dispatch}
            return written(tmp_path, {"name": "charite", "dispatch": silo}).override(**{
                "store.url": "s3://federation/melanoma", "store.endpoint_url": "http://minio.storage:9000"})

        return make

    def test_takes_what_its_agent_brings(
        self, control_plane: ControlPlane, managed: str, agent: str, there: Hospital, started: Any, federation_with: Callable[..., Federation],
    ) -> None:
        work = started(federation_with(), "charite")
        with WorkAgent(control_plane, managed, there.cluster, account=agent):
            waits_for(work, "its Job has no running pod")
            assert [owner["kind"] for owner in there.job()["metadata"]["ownerReferences"]] == ["AppliedManifestWork"]
            work.stop()
            assert eventually(work.outcome).disrupted
        assert there.jobs() == []

    def test_refuses_a_template_that_is_not_its_own(
        self, control_plane: ControlPlane, managed: str, agent: str, there: Hospital, started: Any, federation_with: Callable[..., Federation],
    ) -> None:
        work = started(federation_with(lambda pod: pod["containers"][0].update(image="registry.example/other:1")), "charite")
        with WorkAgent(control_plane, managed, there.cluster, account=agent):
            outcome = eventually(work.outcome)
        assert outcome.exit_code == 14 and outcome.permanent
        assert "fixes the container's image" in outcome.reason and "ask it for its current template" in outcome.reason

    def test_its_executor_needs_rights_of_its_own(
        self, control_plane: ControlPlane, managed: str, agent: str, there: Hospital, started: Any, federation_with: Callable[..., Federation],
    ) -> None:
        kubectl = there.cluster.kubectl
        kubectl("-n", there.namespace, "create", "serviceaccount", "runner")
        config = federation_with(executor="runner")
        with WorkAgent(control_plane, managed, there.cluster, account=agent):
            outcome = eventually(started(config, "charite").outcome)
            assert outcome.exit_code == 14
            assert "let service account 'runner' (dispatch.executor) create, get, update, patch and delete jobs" in outcome.reason
            kubectl("-n", there.namespace, "create", "role", "runner", "--verb=create,get,update,patch,delete", "--resource=jobs")
            kubectl("-n", there.namespace, "create", "rolebinding", "runner", "--role=runner", f"--serviceaccount={there.namespace}:runner")
            waits_for(started(config, "charite"), "its Job has no running pod")


def test_the_hospitals_kueue_holds_the_job_and_stopping_deletes_it_there(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace, queue="gpus")), "aachen", "train")
    with WorkAgent(control_plane, managed, clinic):
        waits_for(work, "queued by Kueue in queue 'gpus'")
        assert there.job()["metadata"]["labels"][QUEUE_LABEL] == "gpus"
        there.patch_job({"suspend": False})
        waits_for(work, "its Job has no running pod")
        work.stop()
        assert eventually(work.outcome).disrupted
        assert there.jobs() == []


def test_a_hub_without_rights_on_works_is_told_before_a_run_whom_to_ask(control_plane: ControlPlane, managed: str, tmp_path: Path) -> None:
    config = written(tmp_path, entry(tmp_path, "aachen", control_plane.new_namespace("other-clinic"), "silo"))
    problem = preflight(config)["aachen"]
    assert isinstance(problem, AccessDenied)
    assert "ask whoever runs the Open Cluster Management hub for a Role on manifestworks" in str(problem)


def test_one_federation_mixes_its_silos_ways(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    """One hospital by its own cluster's context, one through the agent, one as a process on this machine."""
    account = hub_account(clinic)
    direct = Hospital(clinic, "bonn", account)
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    monkeypatch.setenv("KUBECONFIG", f"{os.environ['KUBECONFIG']}:{context_named(clinic.kubeconfig(account), 'bonn')}")
    (tmp_path / "celle.yaml").write_text(json.dumps({"name": "celle"}))
    config = written(
        tmp_path, entry(tmp_path, "aachen", managed, there.namespace),
        {"name": "bonn", "dispatch": {"kind": "kubernetes", "context": "bonn", "namespace": direct.namespace}},
        {"name": "celle", "dispatch": {"kind": "process", "silo_config": "celle.yaml"}})
    assert preflight(config) == {"aachen": None, "bonn": None}
    assert works(control_plane, managed) == direct.jobs() == []
    dispatcher = RoutingDispatcher(RUN, tmp_path / "logs")
    begun = {silo: dispatcher.start(request_of(config, RUN, silo, "check")) for silo in config.silo_names}
    with WorkAgent(control_plane, managed, clinic):
        for hospital in (direct, there):
            eventually(lambda: begun[hospital.silo].outcome() or hospital.jobs())  # noqa: B023 - called before the next
            assert begun[hospital.silo].outcome() is None
            hospital.end_pod(0)
            assert eventually(begun[hospital.silo].outcome).done
    outcome = eventually(begun["celle"].outcome, 120)
    assert outcome.exit_code == 10 and "silo.yaml cannot be used" in outcome.reason  # what is wrong in it stays in the hospital
    dispatcher.close()

