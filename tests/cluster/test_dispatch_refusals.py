"""What a hospital has not set up, or a hub has wrong, is one sentence of that silo that says what to ask the hospital for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.config.federation import Federation
from fedhelp_dispatch.lifecycle import Patience
from fedhelp_dispatch.preflight import preflight
from fedhelp_dispatch.remote import RemoteDispatcher
from fedhelp_dispatch.request import Outcome
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import Hospital, eventually, federation, request_of

pytestmark = pytest.mark.cluster


def outcome(config: Federation) -> Outcome:
    """How check ends in the federation's first silo."""
    dispatcher = RemoteDispatcher("run-1", Patience(refusal=2.0))
    try:
        return eventually(dispatcher.start(request_of(config, "run-1", config.silo_names[0], "check")).outcome)
    finally:
        dispatcher.close()


def refused(config: Federation, code: int, *words: str) -> None:
    found = outcome(config)
    assert found.exit_code == code and found.permanent, found
    assert "\n" not in found.reason
    for word in words:
        assert word in found.reason, found.reason
    (before,) = preflight(config).values()  # what `fedhelp check` would have said
    assert before is not None and before.exit_code == code
    for word in words:
        assert word.lower() in str(before).lower(), before


def test_missing_rbac(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account, role=False)
    refused(federation(hospital), 14, f"namespace '{hospital.namespace}'", account, "ask the hospital to install chart fedhelp-silo", "Role")


def test_a_role_that_may_not_watch(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account)
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{hospital.namespace}/roles/fedhelp-hub"
    role = control_plane.request("GET", path)
    role["rules"][0]["verbs"] = ["create", "get", "delete"]
    control_plane.request("PUT", path, role)
    refused(federation(hospital), 14, "may not", "watch Jobs", "ask the hospital")


def test_missing_namespace_for_an_account_that_may_see_namespaces(control_plane: ControlPlane, kubeconfig: Callable[..., None]) -> None:
    kubeconfig("admin")
    hospital = Hospital(control_plane, "aachen", "system:serviceaccount:x:y", install=False, role=False)
    config = federation(hospital).override(**{"silos.0.dispatch.namespace": "nowhere"})
    refused(config, 18, "namespace 'nowhere'", "no such namespace", "dispatch.namespace", "ask the hospital")


def test_missing_namespace_for_the_hubs_account(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account)
    config = federation(hospital).override(**{"silos.0.dispatch.namespace": "nowhere"})
    refused(config, 14, "namespace 'nowhere'", "correct dispatch.namespace", "ask the hospital")


def test_missing_template(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account, install=False)
    refused(federation(hospital), 18, "no CronJob 'fedhelp-worker'", "ask the hospital to install chart fedhelp-silo")


def test_wrong_context(control_plane: ControlPlane, account: str) -> None:
    config = federation(Hospital(control_plane, "aachen", account), context="clinic")
    refused(config, 10, "no context 'clinic'", account, "ask the hospital for its kubeconfig")


def test_no_kubeconfig(control_plane: ControlPlane, account: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = federation(Hospital(control_plane, "aachen", account))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    refused(config, 10, "no kubeconfig at", str(tmp_path / "none"), "set KUBECONFIG")


def test_expired_token(control_plane: ControlPlane, account: str, kubeconfig: Callable[..., None]) -> None:
    config = federation(Hospital(control_plane, "aachen", account))

    def spoil(document: dict[str, Any]) -> None:
        document["users"][0]["user"]["token"] = "of-yesterday"

    kubeconfig(account, spoil)
    refused(config, 14, "401 Unauthorized", "the token has expired", "ask the hospital for a new token")


def test_another_clusters_certificate(control_plane: ControlPlane, account: str, kubeconfig: Callable[..., None], tmp_path: Path) -> None:
    from tests.cluster.certificates import Authority

    config = federation(Hospital(control_plane, "aachen", account))
    stranger = Authority(tmp_path / "stranger").pair.certificate.read_bytes()

    def swap(document: dict[str, Any]) -> None:
        import base64

        document["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(stranger).decode()

    kubeconfig(account, swap)
    refused(config, 10, "certificate is not trusted", "ask the hospital for its current kubeconfig")


def test_the_hospitals_admission_policy_speaks(control_plane: ControlPlane, account: str) -> None:
    hospital = Hospital(control_plane, "aachen", account)
    base = "/apis/admissionregistration.k8s.io/v1"
    name = f"no-jobs-{hospital.namespace}"
    only_there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": hospital.namespace}}}
    control_plane.request("POST", f"{base}/validatingadmissionpolicies", {"metadata": {"name": name}, "spec": {
        "failurePolicy": "Fail", "validations": [{"expression": "false", "message": "the image is not ours"}],
        "matchConstraints": {"resourceRules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]}}})
    control_plane.request("POST", f"{base}/validatingadmissionpolicybindings", {
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": only_there}})
    dry = f"/apis/batch/v1/namespaces/{hospital.namespace}/jobs?dryRun=All"
    eventually(lambda: _fails(lambda: control_plane.request("POST", dry, _any_job())))
    refused(federation(hospital), 14, "the hospital's admission policy refused it", "the image is not ours", "ask the hospital")


def test_a_server_that_is_not_there_is_waited_for_and_said(
    control_plane: ControlPlane, account: str, kubeconfig: Callable[..., None],
) -> None:
    config = federation(Hospital(control_plane, "aachen", account))

    def away(document: dict[str, Any]) -> None:
        document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    kubeconfig(account, away)
    dispatcher = RemoteDispatcher("run-1")
    work = dispatcher.start(request_of(config, "run-1", "aachen", "check"))

    def said() -> bool:
        assert work.outcome() is None
        waiting = work.waiting()
        return waiting is not None and "not reached" in waiting.reason

    eventually(said)
    began = time.monotonic()
    dispatcher.close()
    assert time.monotonic() - began < 60


def _fails(action: Callable[[], Any]) -> bool:
    try:
        action()
    except RuntimeError:
        return True
    return False


def _any_job() -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "worker", "image": "i"}]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "any"}, "spec": {"template": {"spec": pod}}}
