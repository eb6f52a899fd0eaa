"""Dispatch `kubernetes` against a real API server with its own controllers, as the hub's account: what it creates, adopts, sees and ends.

There is no kubelet: the only node has no free GPU, pods wait for it, and tests say what their containers did.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_core.config.federation import Federation
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.job import job_of
from fedhelp_dispatch.lifecycle import Patience
from fedhelp_dispatch.remote import RemoteDispatcher
from fedhelp_dispatch.request import Outcome, Work
from fedhelp_dispatch.supervisor import Supervisor, run_everywhere
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import Hospital, eventually, federation, hub_account, request_of

pytestmark = pytest.mark.cluster
RUN = "run-1"


@pytest.fixture
def account(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's account; $KUBECONFIG is its."""
    account = hub_account(control_plane)
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(account)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return account


@pytest.fixture
def hospital(control_plane: ControlPlane, account: str) -> Hospital:
    return Hospital(control_plane, "aachen", account)


@pytest.fixture
def dispatcher_of() -> Iterator[Callable[..., RemoteDispatcher]]:
    started: list[RemoteDispatcher] = []

    def make(config: Federation, patience: Patience = Patience(refusal=2.0)) -> RemoteDispatcher:  # noqa: B008 - a value
        started.append(RemoteDispatcher(RUN, patience))
        return started[-1]

    yield make
    for dispatcher in started:
        dispatcher.close()


def waits_for(work: Work, words: str) -> str:
    """The reason, once it holds `words`."""

    def look() -> str | None:
        assert work.outcome() is None, work.outcome()
        waiting = work.waiting()
        return str(waiting) if waiting is not None and words in waiting.reason else None

    return eventually(look)


def end_of(work: Work) -> Outcome:
    return eventually(work.outcome)


def runs(work: Work) -> bool:
    return eventually(lambda: work.outcome() is None and work.waiting() is None)


def test_a_job_is_made_of_the_template_waits_for_a_gpu_runs_and_is_done(hospital: Hospital, dispatcher_of: Any) -> None:
    config = federation(hospital)
    request = request_of(config, RUN, "aachen", "train")
    work = dispatcher_of(config).start(request)
    job = hospital.job()
    cron_job = hospital.cluster.request("GET", f"/apis/batch/v1/namespaces/{hospital.namespace}/cronjobs/fedhelp-worker")
    made = job_of(cron_job, request, namespace=hospital.namespace)
    assert {key: job["spec"][key] for key in made["spec"] if key != "template"} == {k: v for k, v in made["spec"].items() if k != "template"}
    assert job["spec"]["template"]["spec"] == made["spec"]["template"]["spec"]
    assert "Insufficient nvidia.com/gpu" in waits_for(work, "no node can take its pod") and "since 20" in str(work.waiting())
    hospital.run_pod()
    assert runs(work)
    hospital.end_pod(0)
    assert end_of(work).done


def test_the_same_request_is_adopted_by_a_restarted_hub_and_another_one_is_a_conflict(hospital: Hospital, dispatcher_of: Any) -> None:
    config = federation(hospital)
    dispatcher_of(config).start(request_of(config, RUN, "aachen", "train"))
    uid = hospital.job()["metadata"]["uid"]
    adopted = dispatcher_of(config).start(request_of(config, RUN, "aachen", "train"))
    waits_for(adopted, "no node can take its pod")
    assert [job["metadata"]["uid"] for job in hospital.jobs()] == [uid]
    other = federation(hospital, rounds=3)
    conflict = end_of(dispatcher_of(other).start(request_of(other, RUN, "aachen", "train")))
    assert conflict.exit_code == 13 and "runs for another request" in conflict.reason and conflict.permanent


def test_a_finished_job_of_the_same_name_makes_way(hospital: Hospital, dispatcher_of: Any) -> None:
    config = federation(hospital)
    dispatcher = dispatcher_of(config)
    first = dispatcher.start(request_of(config, RUN, "aachen", "check"))
    uid = hospital.job()["metadata"]["uid"]
    hospital.end_pod(30)
    assert end_of(first).exit_code == 30
    second = dispatcher.start(request_of(config, RUN, "aachen", "check"))
    waits_for(second, "no node can take its pod")
    assert hospital.job()["metadata"]["uid"] != uid
    hospital.end_pod(0)
    assert end_of(second).done


@pytest.mark.parametrize(("code", "permanent"), [(11, True), (16, True), (30, False), (137, False)])
def test_the_workers_exit_code_decides_whether_trying_again_is_of_use(
    hospital: Hospital, dispatcher_of: Any, code: int, permanent: bool,
) -> None:
    config = federation(hospital)
    work = dispatcher_of(config).start(request_of(config, RUN, "aachen", "check"))
    hospital.end_pod(code, "fedhelp-worker check: error: image 7.jpg: cannot be decoded")
    outcome = end_of(work)
    assert (outcome.exit_code, outcome.permanent, outcome.late) == (code, permanent, False)
    assert outcome.reason == "image 7.jpg: cannot be decoded"


def test_rights_that_came_back_are_missed_anew_before_it_is_a_fault(control_plane: ControlPlane, account: str, dispatcher_of: Any) -> None:
    patience = 8.0
    hospital = Hospital(control_plane, "aachen", account, role=False)
    config = federation(hospital)
    work = dispatcher_of(config, Patience(refusal=patience)).start(request_of(config, RUN, "aachen", "train"))
    waits_for(work, "ask the hospital")
    refused = time.monotonic()
    hospital.grant(account)
    waits_for(work, "no node can take its pod")
    time.sleep(max(0.0, patience - (time.monotonic() - refused)))
    control_plane.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{hospital.namespace}/rolebindings/fedhelp-hub")
    waits_for(work, "ask the hospital")
    assert end_of(work).exit_code == 14


def test_a_pod_that_was_evicted_is_started_again_by_its_job_and_nobody_notices(hospital: Hospital, dispatcher_of: Any) -> None:
    config = federation(hospital)
    work = dispatcher_of(config).start(request_of(config, RUN, "aachen", "check"))
    first = hospital.pod()["metadata"]["name"]
    hospital.end_pod(143, disrupted=True)
    eventually(lambda: hospital.pod()["metadata"]["name"] != first)
    assert work.outcome() is None
    hospital.end_pod(0)
    assert end_of(work).done


def test_a_quota_that_is_used_up_means_waiting_with_the_quotas_own_figures(hospital: Hospital, dispatcher_of: Any) -> None:
    hospital.quota(**{"requests.nvidia.com/gpu": "0"})
    config = federation(hospital)
    work = dispatcher_of(config).start(request_of(config, RUN, "aachen", "train"))
    reason = waits_for(work, "quota gpus is used up")
    assert "requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=0, limited: requests.nvidia.com/gpu=0" in reason
    assert "ask the hospital for more quota" in reason


def test_a_quota_on_jobs_themselves_means_waiting_too(hospital: Hospital, dispatcher_of: Any) -> None:
    hospital.quota(**{"count/jobs.batch": "0"})
    config = federation(hospital)
    work = dispatcher_of(config).start(request_of(config, RUN, "aachen", "train"))
    assert "ask the hospital for more" in waits_for(work, "quota does not allow another Job")
    assert hospital.jobs() == []


def test_an_image_that_cannot_be_pulled_is_said_at_once_and_given_up_after_a_while(hospital: Hospital, dispatcher_of: Any) -> None:
    config = federation(hospital)
    work = dispatcher_of(config, Patience(fault=8.0)).start(request_of(config, RUN, "aachen", "check"))
    hospital.pod()
    hospital.pull_fails()
    waits_for(work, "image 'registry.example/fedhelp-silo:1' cannot be pulled (ImagePullBackOff")
    outcome = end_of(work)
    assert outcome.exit_code == 19 and "ask the hospital to check image, registry access and imagePullSecrets" in outcome.reason
    eventually(lambda: hospital.jobs() == [])


def test_work_in_a_kueue_queue_is_made_suspended_says_so_and_survives_eviction_and_readmission(
    control_plane: ControlPlane, account: str, dispatcher_of: Any,
) -> None:
    hospital = Hospital(control_plane, "bonn", account, queue="gpus")
    config = federation(hospital)
    work = dispatcher_of(config).start(request_of(config, RUN, "bonn", "train"))
    assert hospital.job()["spec"]["suspend"] is True
    assert "since 20" in waits_for(work, "queued by Kueue in queue 'gpus'")
    hospital.patch_job({"suspend": False})
    waits_for(work, "no node can take its pod")
    hospital.run_pod()
    assert runs(work)
    hospital.patch_job({"suspend": True})
    waits_for(work, "queued by Kueue in queue 'gpus'")
    hospital.patch_job({"suspend": False})
    waits_for(work, "no node can take its pod")
    hospital.end_pod(0)
    assert end_of(work).done


def test_a_job_past_its_deadline_is_late_and_says_what_it_waited_for(control_plane: ControlPlane, account: str, dispatcher_of: Any) -> None:
    hospital = Hospital(control_plane, "celle", account)
    config = federation(hospital, residency="round").override(**{"protocol.round_deadline": 5.0})
    work = dispatcher_of(config).start(request_of(config, RUN, "celle", "train", 1))
    assert hospital.job()["spec"]["activeDeadlineSeconds"] == 5
    waits_for(work, "no node can take its pod")
    outcome = end_of(work)
    assert outcome.late and not outcome.permanent
    assert outcome.reason.startswith("its Job ran into its deadline of 5 s; it was still waiting: no node can take its pod")


def test_stopping_deletes_the_job_and_closing_deletes_all_that_run(control_plane: ControlPlane, account: str, dispatcher_of: Any) -> None:
    hospitals = [Hospital(control_plane, silo, account) for silo in ("aachen", "bonn", "celle")]
    config = federation(*hospitals)
    dispatcher = dispatcher_of(config)
    works = [dispatcher.start(request_of(config, RUN, hospital.silo, "train")) for hospital in hospitals]
    for hospital, work in zip(hospitals, works, strict=True):
        hospital.job()
        waits_for(work, "no node can take its pod")
    works[0].stop()
    assert end_of(works[0]).disrupted
    eventually(lambda: hospitals[0].jobs() == [])
    hospitals[1].end_pod(0)
    assert end_of(works[1]).done
    dispatcher.close()
    eventually(lambda: hospitals[2].jobs() == [])
    assert len(hospitals[1].jobs()) == 1, "what is finished stays for people to look at"


def test_a_watch_per_namespace_where_the_account_has_no_more_rights_and_one_for_all_where_it_has(
    control_plane: ControlPlane, account: str, dispatcher_of: Any,
) -> None:
    hospitals = [Hospital(control_plane, silo, account) for silo in ("aachen", "bonn", "celle")]
    config = federation(*hospitals)

    def started(dispatcher: RemoteDispatcher) -> RemoteDispatcher:
        works = [dispatcher.start(request_of(config, RUN, hospital.silo, "train")) for hospital in hospitals]
        for work in works:
            waits_for(work, "no node can take its pod")
        return dispatcher

    assert started(dispatcher_of(config)).connections == 3
    base = "/apis/rbac.authorization.k8s.io/v1"
    name = account.replace(":", "-")
    control_plane.request("POST", f"{base}/clusterroles", {
        "metadata": {"name": name}, "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]}]})
    control_plane.request("POST", f"{base}/clusterrolebindings", {
        "metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": account}]})
    assert started(dispatcher_of(config)).connections == 1


def supervised(hospital: Hospital, folder: Path, dispatcher: RemoteDispatcher, config: Federation) -> tuple[Supervisor, Run, list[str]]:
    """A supervisor over a store that has commit 0."""
    import numpy

    run = Run(open_store(str(folder / "store")), RUN)
    run.freeze(config.to_yaml())
    run.initialise({"w": numpy.zeros(2, numpy.float32)}, "test")
    said: list[str] = []
    return Supervisor(config.silos[0], config, run, dispatcher, said.append), run, said


def test_a_job_that_somebody_deletes_is_started_again_and_counts_as_no_failure(hospital: Hospital, dispatcher_of: Any, tmp_path: Path) -> None:
    config = federation(hospital, retries=0)
    supervisor, run, said = supervised(hospital, tmp_path, dispatcher_of(config), config)

    def ticked_until(look: Callable[[], Any]) -> Any:
        return eventually(lambda: supervisor.tick(run.latest_commit()) or look())

    for _ in range(3):
        uid = ticked_until(hospital.jobs)[0]["metadata"]["uid"]
        ticked_until(lambda: any("waiting: no node" in line for line in said))
        said.clear()
        hospital.delete_job()
        ticked_until(lambda: any("was deleted by somebody; started again" in line for line in said))
        ticked_until(lambda uid=uid: [job for job in hospital.jobs() if job["metadata"]["uid"] != uid])
    assert supervisor.failure is None and not supervisor.finished


def test_a_silo_with_a_permanent_fault_is_left_out_with_its_own_words(hospital: Hospital, dispatcher_of: Any, tmp_path: Path) -> None:
    config = federation(hospital)
    supervisor, run, _ = supervised(hospital, tmp_path, dispatcher_of(config), config)
    eventually(lambda: supervisor.tick(run.latest_commit()) or hospital.jobs())
    hospital.end_pod(11, "fedhelp-worker train: error: datalist.json: no such file")
    eventually(lambda: supervisor.tick(run.latest_commit()) or supervisor.finished)
    assert supervisor.failure == "datalist.json: no such file"
    assert run.absences(1) == run.absences(2) == {"aachen": "datalist.json: no such file"}


def test_check_names_every_silo_that_failed_and_why(control_plane: ControlPlane, account: str, dispatcher_of: Any, tmp_path: Path) -> None:
    good, bare = Hospital(control_plane, "aachen", account), Hospital(control_plane, "bonn", account, role=False)
    config = federation(good, bare)
    run = Run(open_store(str(tmp_path / "store")), RUN)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting: no node can take its pod" in line:
            good.end_pod(0)

    failed = run_everywhere("check", config, run, dispatcher_of(config), say, lambda silo: False)
    assert list(failed) == ["bonn"] and "the hub's account may not" in failed["bonn"].reason


@pytest.mark.slow
def test_an_api_server_that_is_away_for_a_while_and_forgot_the_past_loses_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dispatcher_of: Any,
) -> None:
    with ControlPlane(tmp_path / "own") as cluster:
        account = hub_account(cluster)
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(account)))
        one, two, three = (Hospital(cluster, silo, account) for silo in ("aachen", "bonn", "celle"))
        config = federation(one, two, three)
        dispatcher = dispatcher_of(config, Patience())  # a server that has just started refuses what it will soon allow
        works = {hospital.silo: dispatcher.start(request_of(config, RUN, hospital.silo, "train")) for hospital in (one, two)}
        for hospital in (one, two):
            waits_for(works[hospital.silo], "no node can take its pod")
            hospital.run_pod()
            assert runs(works[hospital.silo])
        cluster.stop_api_server()
        works["celle"] = dispatcher.start(request_of(config, RUN, "celle", "train"))
        assert "not reached" in waits_for(works["celle"], "not reached")
        assert works["aachen"].outcome() is None
        cluster.start_api_server()
        two.delete_job()
        cluster.stop_api_server()
        forget_the_past(cluster)
        cluster.start_api_server()
        one.end_pod(0)
        assert end_of(works["aachen"]).done
        assert "was deleted by somebody" in end_of(works["bonn"]).reason
        waits_for(works["celle"], "no node can take its pod")


def forget_the_past(cluster: ControlPlane) -> None:
    """Compact etcd, so that watches from before are 410 Gone."""
    import urllib.request

    def etcd(path: str, body: dict[str, Any]) -> Any:
        address = f"http://127.0.0.1:{cluster._etcd_port}/v3/kv/{path}"
        request = urllib.request.Request(address, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        return json.loads(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).read())

    revision = etcd("range", {"key": "YQ=="})["header"]["revision"]
    etcd("compaction", {"revision": revision, "physical": True})


def test_a_dry_run_prints_the_jobs_that_a_run_would_create(hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedhelp_cli.run import run_locally

    config = federation(hospital, residency="round")
    path = tmp_path / "federation.yaml"
    path.write_text(config.to_yaml())
    run_locally(path, run_id=RUN, changes={}, dry_run=True)
    _, *jobs = yaml.safe_load_all(capsys.readouterr().out)
    assert [(job["kind"], job["metadata"]["namespace"], job["metadata"]["labels"]["fedhelp.io/action"]) for job in jobs] == [
        ("Job", hospital.namespace, action) for action in ("check", "train", "evaluate")]
    assert jobs[1]["spec"]["template"]["spec"]["containers"][0]["args"] == request_of(config, RUN, "aachen", "train", 1).arguments()
    assert hospital.jobs() == []
    for job in jobs:
        hospital.cluster.request("POST", f"/apis/batch/v1/namespaces/{hospital.namespace}/jobs?dryRun=All", job)
