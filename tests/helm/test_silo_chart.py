"""Chart fedhelp-silo, rendered: the template that the hub may use, and the fence around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.errors import PERMANENT_EXIT_CODES
from tests.helm.conftest import OPTIONAL_APIS, SILO, Rendered, helm, variants

Render = Callable[..., Rendered]
Refusal = Callable[..., str]
VARIANTS = [path.name.removesuffix("-values.yaml") for path in variants(SILO)]


def job_of(objects: Rendered) -> dict[str, Any]:
    template: dict[str, Any] = objects.one("CronJob", "fedhelp-worker")["spec"]["jobTemplate"]
    return template


def pod_of(objects: Rendered) -> dict[str, Any]:
    pod: dict[str, Any] = job_of(objects)["spec"]["template"]["spec"]
    return pod


def environment_of(objects: Rendered) -> dict[str, str]:
    return {e["name"]: e["value"] for e in pod_of(objects)["containers"][0]["env"]}


def test_there_is_a_variant_for_each_way_of_taking_part() -> None:
    assert VARIANTS == ["air-gapped", "kueue", "mig", "own-cluster", "serving", "shared-cluster"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lints_every_variant_without_a_warning(variant: str) -> None:
    done = helm("lint", SILO, "--strict", "--values", SILO / "ci" / f"{variant}-values.yaml")

    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hospital_needs_about_fifteen_lines(variant: str) -> None:
    lines = [line for line in (SILO / "ci" / f"{variant}-values.yaml").read_text().splitlines() if line.strip() and not line.startswith("#")]

    assert len(lines) <= 26
    if variant == "shared-cluster":
        assert len(lines) <= 15


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_says_whose_it_is(variant: str, render: Render) -> None:
    for found in render(SILO, variant):
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "fedhelp"
        assert labels["app.kubernetes.io/name"] == "fedhelp-silo"
        assert labels["fedhelp.io/silo"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_template_never_runs_by_itself(variant: str, render: Render) -> None:
    assert render(SILO, variant).one("CronJob", "fedhelp-worker")["spec"]["suspend"] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_is_hardened(variant: str, render: Render) -> None:
    pod = pod_of(render(SILO, variant))
    container = pod["containers"][0]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["restartPolicy"] == "Never"
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_whatever_python_writes_to_is_writable(render: Render) -> None:
    objects = render(SILO, "shared-cluster")
    pod, environment = pod_of(objects), environment_of(objects)
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    writable = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] in empty}

    assert {environment["HOME"], environment["TMPDIR"], "/dev/shm"} <= writable
    assert environment["MPLCONFIGDIR"].startswith(environment["HOME"])


def test_data_are_mounted_read_only_and_state_is_not(render: Render) -> None:
    pod = pod_of(render(SILO, "air-gapped"))
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}

    assert mounts["data"] == {"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "2026-10"}
    assert claims["data"] == {"claimName": "dermatology", "readOnly": True}
    assert mounts["state"] == {"name": "state", "mountPath": "/state"}
    assert claims["state"] == {"claimName": "fedhelp-state"}


def test_permanent_exit_codes_end_a_job_and_disruptions_do_not_count(render: Render) -> None:
    spec = job_of(render(SILO, "shared-cluster"))["spec"]
    disruption, permanent = spec["podFailurePolicy"]["rules"]

    assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert permanent == {
        "action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": list(PERMANENT_EXIT_CODES)}}
    assert spec["podReplacementPolicy"] == "Failed"
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["activeDeadlineSeconds"]) == (3, 86400, 86400)


@pytest.mark.parametrize(("variant", "resource"), [("shared-cluster", "nvidia.com/gpu"), ("mig", "nvidia.com/mig-2g.20gb")])
def test_one_gpu_or_slice_is_asked_for(variant: str, resource: str, render: Render) -> None:
    objects = render(SILO, variant)
    resources = pod_of(objects)["containers"][0]["resources"]

    assert resources["limits"][resource] == resources["requests"][resource] == "1"
    assert objects.one("ResourceQuota")["spec"]["hard"][f"requests.{resource}"] == "1"


def test_a_silo_without_a_gpu_asks_for_none(render: Render) -> None:
    objects = render(SILO, "shared-cluster", {"gpu": {"count": 0}})

    assert not any("nvidia" in key for key in pod_of(objects)["containers"][0]["resources"]["limits"])
    assert not any("nvidia" in key for key in objects.one("ResourceQuota")["spec"]["hard"])
    assert "--gpu" not in objects.one("Job", "fedhelp-doctor")["spec"]["template"]["spec"]["containers"][0]["args"]


def test_with_kueue_jobs_are_made_suspended_in_the_queue(render: Render) -> None:
    objects = render(SILO, "kueue")

    for job in (job_of(objects), objects.one("Job", "fedhelp-doctor")):
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        assert job["spec"]["suspend"] is True
    assert job_of(render(SILO, "shared-cluster"))["spec"]["suspend"] is False


@pytest.mark.parametrize("variant", VARIANTS)
def test_silo_yaml_is_one_that_the_worker_takes(variant: str, render: Render, tmp_path: Any) -> None:
    path = tmp_path / "silo.yaml"
    path.write_text(render(SILO, variant).one("ConfigMap", "fedhelp-silo")["data"]["silo.yaml"])

    config = load_silo(path)

    assert str(config.state) == "/state"
    if variant == "air-gapped":
        assert str(config.data.datalist) == "/data/lists/melanoma.json"  # type: ignore[union-attr]
        assert str(config.data.root) == "/data/images"  # type: ignore[union-attr]
    if variant == "shared-cluster":
        assert config.data.center == 1  # type: ignore[union-attr]


_LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # layout -> (values of `data`, the `data` of silo.yaml)
    "datalist": ({"datalist": "lists/a.json"}, {"datalist": "/data/lists/a.json", "root": None, "test_only": False}),
    "fed-isic2019": (
        {"center": 3, "lesions": "HAM10000_metadata.csv"},
        {"images": "/data/images", "split_csv": "/data/train_test_split.csv", "center": 3, "lesions": "/data/HAM10000_metadata.csv",
         "validation_fraction": None}),
    "chest-xray": (
        {"share": {"number": 0, "sizes": [3, 1]}, "validationFraction": 0.1},
        {"root": "/data", "share": {"number": 0, "sizes": [3.0, 1.0]}, "validation_fraction": 0.1}),
    "pictures-and-masks": (
        {"masks": "marks", "prefix": "JPCLN", "testFraction": 0.5, "validationFraction": 0.25},
        {"images": "/data/images", "masks": "/data/marks", "prefix": "JPCLN", "share": None, "test_fraction": 0.5, "validation_fraction": 0.25}),
    "fed-ixi": (
        {"root": "subjects", "hospital": "IOP", "validationFraction": 0},
        {"root": "/data/subjects", "split_csv": "/data/metadata_tiny.csv", "hospital": "IOP", "validation_fraction": 0.0}),
}


def test_a_hospital_is_named_only_where_its_values_say_so(render: Render, tmp_path: Any) -> None:
    path = tmp_path / "silo.yaml"
    for values, named in (({"silo": {"named": True}}, True), ({}, False)):
        path.write_text(render(SILO, "shared-cluster", values).one("ConfigMap", "fedhelp-silo")["data"]["silo.yaml"])
        assert load_silo(path).named is named
        assert ("named" in path.read_text()) is named


def test_the_chart_takes_every_layout_that_silo_yaml_takes() -> None:
    import json

    known = {member.model_fields["layout"].annotation.__args__[0] for member in SiloConfig.model_fields["data"].annotation.__args__}  # type: ignore[union-attr]
    taken = json.loads((SILO / "values.schema.json").read_text())["properties"]["data"]["properties"]["layout"]["enum"]

    assert set(taken) == known == set(_LAYOUTS)


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_a_layouts_values_become_its_fields_in_silo_yaml(layout: str, render: Render, tmp_path: Any) -> None:
    values, expected = _LAYOUTS[layout]
    path = tmp_path / "silo.yaml"
    path.write_text(render(SILO, "kueue", {"data": {"share": {"number": ""}, "root": "", "layout": layout, **values}}).one(
        "ConfigMap", "fedhelp-silo")["data"]["silo.yaml"])

    assert load_silo(path).data.model_dump(mode="json") == {"layout": layout, **expected}


def test_the_worker_finds_silo_yaml_where_it_is_mounted(render: Render) -> None:
    objects = render(SILO, "shared-cluster")
    folder = next(m["mountPath"] for m in pod_of(objects)["containers"][0]["volumeMounts"] if m["name"] == "config")

    assert environment_of(objects)["FEDHELP_SILO_CONFIG"] == f"{folder}/silo.yaml"


def test_credentials_come_from_the_hospitals_own_secret(render: Render) -> None:
    assert pod_of(render(SILO, "shared-cluster"))["containers"][0]["envFrom"] == [{"secretRef": {"name": "fedhelp-store"}}]
    assert "envFrom" not in pod_of(render(SILO, "mig"))["containers"][0]
    assert not render(SILO, "shared-cluster").has("Secret")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_example_names_the_registry_of_its_image(variant: str, render: Render) -> None:
    image = pod_of(render(SILO, variant))["containers"][0]["image"]

    assert image.startswith("registry."), image


def test_an_image_can_be_pinned_by_digest(render: Render) -> None:
    image = pod_of(render(SILO, "air-gapped"))["containers"][0]["image"]

    assert image.startswith("registry.waldklinik.example/mirror/fedhelp/silo@sha256:")


def test_the_hubs_role_is_what_dispatch_needs_and_no_more(render: Render) -> None:
    objects = render(SILO, "shared-cluster")

    assert objects.one("Role", "fedhelp-hub")["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
        {"apiGroups": ["batch"], "resources": ["cronjobs"], "resourceNames": ["fedhelp-worker"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    ]
    queued = {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]}
    assert queued in render(SILO, "kueue").one("Role", "fedhelp-hub")["rules"]
    assert not objects.has("ClusterRole")
    assert not objects.has("ClusterRoleBinding")
    assert objects.one("RoleBinding", "fedhelp-hub")["subjects"] == [{"kind": "ServiceAccount", "name": "fedhelp-runs", "namespace": "fedhelp"}]


def test_subjects_may_be_users_groups_or_an_account_that_the_chart_makes(render: Render) -> None:
    api = "rbac.authorization.k8s.io"

    assert render(SILO, "air-gapped").one("RoleBinding")["subjects"] == [{"kind": "User", "name": "fedhelp-hub", "apiGroup": api}]
    assert render(SILO, "kueue").one("RoleBinding")["subjects"] == [{"kind": "Group", "name": "fedhelp-hubs", "apiGroup": api}]
    own = render(SILO, "own-cluster")
    assert own.one("RoleBinding")["subjects"] == [{"kind": "ServiceAccount", "name": "fedhelp-hub", "namespace": "hospital"}]
    assert own.one("ServiceAccount", "fedhelp-hub")["automountServiceAccountToken"] is False


def test_the_policy_binds_this_namespace_to_the_template_itself(render: Render) -> None:
    objects = render(SILO, "shared-cluster")
    policy = objects.one("ValidatingAdmissionPolicy")["spec"]
    binding = objects.one("ValidatingAdmissionPolicyBinding")["spec"]
    here = {"matchLabels": {"kubernetes.io/metadata.name": "hospital"}}

    assert policy["failurePolicy"] == "Fail"
    assert policy["paramKind"] == {"apiVersion": "batch/v1", "kind": "CronJob"}
    assert binding["paramRef"] == {"name": "fedhelp-worker", "namespace": "hospital", "parameterNotFoundAction": "Deny"}
    assert policy["matchConstraints"]["namespaceSelector"] == binding["matchResources"]["namespaceSelector"] == here
    assert binding["validationActions"] == ["Deny"]


def test_all_traffic_is_denied_but_dns_the_store_and_metrics(render: Render) -> None:
    objects = render(SILO, "own-cluster")
    worker = objects.one("NetworkPolicy", "fedhelp-worker")["spec"]

    assert objects.one("NetworkPolicy", "fedhelp-default-deny")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dns, store = worker["egress"]
    assert dns["ports"] == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    assert store == {"to": [{"ipBlock": {"cidr": "203.0.113.10/32"}}], "ports": [{"protocol": "TCP", "port": 443}]}
    assert worker["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 9090}]
    assert worker["podSelector"]["matchLabels"].items() <= job_of(objects)["spec"]["template"]["metadata"]["labels"].items()


def test_without_metrics_nothing_gets_in(render: Render) -> None:
    objects = render(SILO, "air-gapped")

    assert objects.one("NetworkPolicy", "fedhelp-worker")["spec"]["ingress"] == []
    assert "ports" not in pod_of(objects)["containers"][0]
    assert "FEDHELP_METRICS_PORT" not in environment_of(objects)


def test_a_store_inside_the_cluster_is_reached_by_its_labels(render: Render) -> None:
    store = render(SILO, "shared-cluster").one("NetworkPolicy", "fedhelp-worker")["spec"]["egress"][1]

    assert store["to"] == [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}, "podSelector": {"matchLabels": {"app": "minio"}}}]


def test_a_pod_monitor_is_made_only_where_asked_for(render: Render) -> None:
    assert not render(SILO, "shared-cluster").has("PodMonitor")
    monitor = render(SILO, "own-cluster").one("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    port = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    assert port in [p["name"] for p in pod_of(render(SILO, "own-cluster"))["containers"][0]["ports"]]


def test_helm_test_runs_the_doctor_in_the_workers_own_pod(render: Render) -> None:
    objects = render(SILO, "shared-cluster")
    doctor = objects.one("Job", "fedhelp-doctor")
    pod, worker = doctor["spec"]["template"]["spec"], pod_of(objects)
    container = pod["containers"][0]

    assert doctor["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert container.pop("args") == ["--store", "s3://federation/melanoma", "--endpoint-url", "http://minio.storage:9000", "--gpu"]
    assert container.pop("command") == ["python", "-m", "fedhelp_dispatch.doctor"]
    worker["containers"][0].pop("command")
    assert pod == worker


def test_the_state_volume_outlives_the_release(render: Render) -> None:
    claim = render(SILO, "air-gapped").one("PersistentVolumeClaim")

    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "encrypted", "resources": {"requests": {"storage": "50Gi"}}}
    assert not render(SILO, "air-gapped", {"state": {"claimName": "mine"}}).has("PersistentVolumeClaim")


def test_an_own_certificate_authority_reaches_boto3(render: Render) -> None:
    objects = render(SILO, "air-gapped")
    mount = next(m for m in pod_of(objects)["containers"][0]["volumeMounts"] if m["name"] == "store-ca")

    assert environment_of(objects)["AWS_CA_BUNDLE"] == f"{mount['mountPath']}/ca.crt"
    assert environment_of(objects)["HTTPS_PROXY"] == "http://10.20.0.5:3128"


@pytest.mark.parametrize(("switch", "kind"), [
    ("admissionPolicy", "ValidatingAdmissionPolicy"), ("networkPolicy", "NetworkPolicy"), ("quota", "ResourceQuota"), ("limitRange", "LimitRange")])
def test_each_part_of_the_fence_can_be_left_to_the_cluster(switch: str, kind: str, render: Render) -> None:
    assert render(SILO, "shared-cluster").has(kind)
    assert not render(SILO, "shared-cluster", {switch: {"enabled": False}}).has(kind)


@pytest.mark.parametrize(("values", "said"), [
    ({"silo": {"name": "Charité"}}, "/silo/name"),
    ({"silo": {"name": "a" * 41}}, "/silo/name"),
    ({"sylo": {"name": "charite"}}, "additional properties 'sylo' not allowed"),
    ({"gpu": {"counts": 1}}, "additional properties 'counts' not allowed"),
    ({"gpu": {"count": -1}}, "/gpu/count"),
    ({"gpu": {"resource": "gpu"}}, "/gpu/resource"),
    ({"data": {"claimName": ""}}, "/data/claimName"),
    ({"data": {"datalist": "../other/datalist.json"}}, "/data/datalist"),
    ({"data": {"datalist": "/etc/passwd"}}, "/data/datalist"),
    ({"data": {"layout": "dicom"}}, "/data/layout"),
    ({"data": {"layout": "chest-xray"}}, "data.share.number: layout chest-xray knows no hospitals"),
    ({"data": {"layout": "chest-xray", "share": {"number": -1}}}, "/data/share/number"),
    ({"data": {"layout": "fed-ixi"}}, "data.hospital: layout fed-ixi needs one of Guys, HH, IOP"),
    ({"data": {"layout": "fed-ixi", "hospital": "Charité"}}, "/data/hospital"),
    ({"data": {"layout": "pictures-and-masks", "masks": "/etc"}}, "/data/masks"),
    ({"data": {"layout": "pictures-and-masks", "testFraction": 0}}, "/data/testFraction"),
    ({"store": {"url": "https://s3.hub.example/federation"}}, "/store/url"),
    ({"store": {"network": [{"cidr": "s3.hub.example", "ports": [443]}]}}, "/store/network/0"),
    ({"store": {"network": [{"cidr": "10.0.0.0/8", "ports": []}]}}, "/store/network/0"),
    ({"store": {"network": []}}, "store.network: workers could not reach the store"),
    ({"hub": {"subjects": []}}, "hub.subjects: nobody could ask for work here"),
    ({"hub": {"subjects": [{"kind": "ServiceAccount", "name": "fedhelp-runs"}]}}, "/hub/subjects/0"),
    ({"hub": {"subjects": [{"kind": "Robot", "name": "r2"}]}}, "/hub/subjects/0"),
    ({"activeDeadlineSeconds": 0}, "/activeDeadlineSeconds"),
    ({"runAsUser": 0}, "/runAsUser"),
    ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
    ({"silo": {"name": "lease"}}, 'silo.name: "lease" is what an object of each run is called; choose another name'),
    ({"silo": {"name": "global-north"}}, 'silo.name: "global-north" is what an object'),
    ({"image": {"repository": "registry.example:5000/silo:0.1"}}, '"registry.example:5000/silo:0.1" names a tag; write it into image.tag'),
    ({"image": {"repository": "silo@sha256:abc"}}, "names a digest; write it into image.digest"),
    ({"resources": {"limits": {"memory": "4Gi"}}}, "resources: memory is 8Gi in requests and 4Gi in limits; a limit is at least the request"),
    ({"resources": {"requests": {"cpu": 3}, "limits": {"cpu": "2500m"}}}, "resources: cpu is 3 in requests and 2500m in limits"),
])
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str, refusal: Refusal) -> None:
    assert said in refusal(SILO, "shared-cluster", values)


@pytest.mark.parametrize("values", [
    {"image": {"repository": "registry.example:5000/fedhelp/silo"}}, {"image": {"repository": "silo"}}, {"silo": {"name": "globale"}},
    {"resources": {"requests": {"cpu": "500m", "memory": "8192Mi"}, "limits": {"cpu": 1, "memory": "8Gi"}}}])
def test_values_near_wrong_ones_are_taken(values: dict[str, Any], render: Render) -> None:
    assert render(SILO, "shared-cluster", values)


def test_a_pod_monitor_without_its_api_is_refused_with_the_next_step(refusal: Refusal) -> None:
    said = refusal(SILO, "own-cluster", {}, apis=tuple(api for api in OPTIONAL_APIS if "PodMonitor" not in api))

    assert "install the Prometheus operator first" in said


def test_the_notes_say_the_next_step() -> None:
    def notes(variant: str) -> str:
        values = SILO / "ci" / f"{variant}-values.yaml"
        done = helm(
            "install", "mine", SILO, "--namespace", "hospital", "--dry-run=client", "--values", values, "--set", "metrics.podMonitor.enabled=false")
        assert done.returncode == 0, done.stderr
        return done.stdout.split("NOTES:")[1]

    assert "helm test mine -n hospital" in notes("shared-cluster")
    assert "kubectl create secret generic fedhelp-store -n hospital" in notes("shared-cluster")
    assert "kubectl create token fedhelp-hub -n hospital" in notes("own-cluster")
    assert "kubectl create secret" not in notes("mig")


def test_names_are_made_in_one_file() -> None:
    for path in (SILO / "templates").glob("*.yaml"):
        for document in path.read_text().split("\n---\n"):
            for line in document.splitlines():
                assert not line.startswith("  name: ") or "include" in line, f"{path.name}: {line}"


def test_values_and_schema_name_the_same_keys() -> None:
    import json

    schema = json.loads((SILO / "values.schema.json").read_text())
    values = yaml.safe_load((SILO / "values.yaml").read_text())

    def compare(found: dict[str, Any], described: dict[str, Any], path: str) -> None:
        assert described["additionalProperties"] is False, path
        assert set(found) == set(described["properties"]) - {"global"}, path
        for key, value in found.items():
            inner = described["properties"][key]
            if isinstance(value, dict) and "properties" in inner and path + key not in ("resources", "serving.resources", "adoption"):
                compare(value, inner, f"{path}{key}.")

    compare(values, schema, "")


def test_a_dns_server_that_is_no_pod_or_listens_elsewhere_can_be_named(render: Render) -> None:
    dns = {"cidr": "169.254.20.10/32", "ports": [5353]}
    policy = render(SILO, "shared-cluster", {"networkPolicy": {"dns": dns}}).one("NetworkPolicy", "fedhelp-worker")

    assert policy["spec"]["egress"][0]["to"][1] == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    assert policy["spec"]["egress"][0]["ports"] == [{"protocol": "UDP", "port": 5353}, {"protocol": "TCP", "port": 5353}]
