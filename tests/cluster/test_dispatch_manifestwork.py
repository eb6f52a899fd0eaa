"""Dispatch `manifestwork` on two real API servers: Open Cluster Management's hub, and a hospital that only dials out.

Its agent cannot be had from the registries here; `Agent` does in a few lines what its API documents: fetch the works of its
cluster, create their Jobs (CreateOnly), report conditions and the fields that feedback rules name, delete what is deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_components.dispatch.job import QUEUE_LABEL
from fedhelp_components.dispatch.manifestwork import ManifestWorkDispatcher
from fedhelp_components.dispatch.preflight import preflight
from fedhelp_components.dispatch.request import Work, request_for
from fedhelp_components.dispatch.routing import RoutingDispatcher
from fedhelp_core.config import Federation, load_federation
from fedhelp_core.errors import AccessDenied
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import Hospital, context_named, eventually, hub_account, template, until_allowed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
RUN = "run-1"
GROUP = "/apis/work.open-cluster-management.io/v1"
FINALIZER = "cluster.open-cluster-management.io/manifest-work-cleanup"


class Agent:
    """A stand-in for OCM's work agent: it talks to both servers, and nobody talks to it."""

    def __init__(self, hub: ControlPlane, works: str, there: ControlPlane) -> None:
        self._hub = hub
        self._base = f"{GROUP}/namespaces/{works}/manifestworks"
        self._there = there
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Agent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(0.2):
            with contextlib.suppress(RuntimeError):  # it changed meanwhile: next time
                for work in self._hub.request("GET", self._base)["items"]:
                    self._serve(work)

    def _serve(self, work: dict[str, Any]) -> None:
        name, finalizers = work["metadata"]["name"], work["metadata"].get("finalizers", [])
        manifest = work["spec"]["workload"]["manifests"][0]
        jobs = f"/apis/batch/v1/namespaces/{manifest['metadata']['namespace']}/jobs"
        if work["metadata"].get("deletionTimestamp"):
            with contextlib.suppress(RuntimeError):
                self._there.request("DELETE", f"{jobs}/{name}?propagationPolicy=Background")
            self._hub.request("PATCH", f"{self._base}/{name}", {"metadata": {"finalizers": None}}, "application/merge-patch+json")
            return
        if FINALIZER not in finalizers:
            self._hub.request("PATCH", f"{self._base}/{name}", {"metadata": {"finalizers": [FINALIZER]}}, "application/merge-patch+json")
        applied, message, values = "True", "Apply manifest complete", []
        try:
            self._there.request("POST", jobs, manifest)
        except RuntimeError as e:
            if " 409 " not in str(e):
                applied, message = "False", str(e)
        if applied == "True":
            values = self._feedback(work, self._there.request("GET", f"{jobs}/{name}"))
        condition = {"type": "Applied", "status": applied, "reason": "Applied", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = {"conditions": [condition], "resourceStatus": {"manifests": [{
            "resourceMeta": {"ordinal": 0, "name": name}, "conditions": [condition], "statusFeedback": {"values": values}}]}}
        if work.get("status") != status:
            self._hub.request("PATCH", f"{self._base}/{name}/status", {"status": status}, "application/merge-patch+json")

    @staticmethod
    def _feedback(work: dict[str, Any], job: dict[str, Any]) -> list[dict[str, Any]]:
        values = []
        for rule in work["spec"]["manifestConfigs"][0]["feedbackRules"][0]["jsonPaths"]:
            found = at_path(job, rule["path"])
            if isinstance(found, int):
                values.append({"name": rule["name"], "fieldValue": {"type": "Integer", "integer": found}})
            elif isinstance(found, str):
                values.append({"name": rule["name"], "fieldValue": {"type": "String", "string": found}})
        return values


def at_path(document: Any, path: str) -> Any:
    """The two shapes of JSONPath that kubectl and we use: .a.b and .a[?(@.k=="v")].b"""
    for name, key, wanted in re.findall(r'\.(\w+)(?:\[\?\(@\.(\w+)=="(\w+)"\)\])?', path):
        document = (document or {}).get(name)
        if key:
            document = next((item for item in document or [] if item[key] == wanted), None)
    return document


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The hospital's own cluster."""
    with ControlPlane(tmp_path_factory.mktemp("clinic")) as cluster:
        yield cluster


@pytest.fixture
def managed(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hospital's namespace on the OCM hub, where the federation's hub may keep works; $KUBECONFIG is its account's."""
    definition = yaml.safe_load(Path(__file__).with_name("manifestworks.yaml").read_text())
    with contextlib.suppress(RuntimeError):
        control_plane.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
    eventually(lambda: _served(control_plane))
    namespace, account = control_plane.new_namespace("clinic"), hub_account(control_plane)
    control_plane.kubectl("-n", namespace, "create", "role", "works", "--verb=create,get,list,watch,delete",
                          "--resource=manifestworks.work.open-cluster-management.io")
    control_plane.kubectl("-n", namespace, "create", "rolebinding", "works", "--role=works",
                          f"--serviceaccount={account.removeprefix('system:serviceaccount:')}")
    until_allowed(control_plane, account, namespace=namespace, verb="watch", resource="manifestworks", group="work.open-cluster-management.io")
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(account)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return namespace


def _served(cluster: ControlPlane) -> bool:
    try:
        cluster.request("GET", f"{GROUP}/namespaces/default/manifestworks")
    except RuntimeError:
        return False
    return True


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
        dispatchers.append(ManifestWorkDispatcher(config, RUN))
        return dispatchers[-1].start(request_for(config, RUN, silo, action))  # type: ignore[no-any-return, arg-type]

    yield start
    for dispatcher in dispatchers:
        dispatcher.close()


def test_the_agent_fetches_the_job_and_its_status_comes_back(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace)), "aachen")
    waits_for(work, "the hospital's agent has not fetched it yet")
    with Agent(control_plane, managed, clinic):
        waits_for(work, "its Job has no running pod; only the hospital sees why")
        (kept,) = control_plane.request("GET", f"{GROUP}/namespaces/{managed}/manifestworks")["items"]
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
    with Agent(control_plane, managed, clinic):
        there.end_pod(code)
        outcome = eventually(work.outcome)
    assert (outcome.exit_code, outcome.permanent) == (expected, permanent)
    assert "kubectl logs job/run-1-aachen-check-" in outcome.reason


def test_a_job_that_the_hospital_refuses_comes_back_with_its_words(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, "nowhere")), "aachen")
    with Agent(control_plane, managed, clinic):
        outcome = eventually(work.outcome)
    assert outcome.exit_code == 14 and 'namespaces \\"nowhere\\" not found' in outcome.reason
    assert "ask it for its current template" in outcome.reason


def test_the_hospitals_kueue_holds_the_job_and_stopping_deletes_it_there(
    control_plane: ControlPlane, clinic: ControlPlane, managed: str, started: Any, tmp_path: Path,
) -> None:
    there = Hospital(clinic, "aachen", "", install=False, role=False)
    work = started(written(tmp_path, entry(tmp_path, "aachen", managed, there.namespace, queue="gpus")), "aachen", "train")
    with Agent(control_plane, managed, clinic):
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
    assert control_plane.request("GET", f"{GROUP}/namespaces/{managed}/manifestworks")["items"] == direct.jobs() == []
    dispatcher = RoutingDispatcher(config, RUN, tmp_path / "logs")
    works = {silo: dispatcher.start(request_for(config, RUN, silo, "check")) for silo in config.silo_names}
    with Agent(control_plane, managed, clinic):
        for hospital in (direct, there):
            eventually(lambda: works[hospital.silo].outcome() or hospital.jobs())  # noqa: B023 - called before the next
            assert works[hospital.silo].outcome() is None
            hospital.end_pod(0)
            assert eventually(works[hospital.silo].outcome).done
    outcome = eventually(works["celle"].outcome, 120)
    assert outcome.exit_code == 10 and "data: missing" in outcome.reason
    dispatcher.close()
