"""Chart fedhelp-hub, rendered: what it puts beside a run, and how the pipelines get into Kubeflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from fedhelp_cli.run_form import form_of
from fedhelp_components.check.form import FIELDS
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.config.trust import Trust
from fedhelp_core.registry.tasks import PRESETS
from fedhelp_pipelines.graphs import FEDERATION_CONFIG_MAP, MLFLOW_SECRET, STORE_SECRET, TEACHERS_FOLDER, TEACHERS_SECRET
from tests.helm.conftest import HUB, OPTIONAL_APIS, Rendered, helm, variants

Render = Callable[..., Rendered]
Refusal = Callable[..., str]
VARIANTS = [path.name.removesuffix("-values.yaml") for path in variants(HUB)]


def uploaded(objects: Rendered, name: str = "fedhelp.yaml") -> list[dict[str, Any]]:
    """A pipeline as the chart's Job uploads it: spec and platform."""
    return list(yaml.safe_load_all(objects.one("ConfigMap", "fedhelp-pipelines")["data"][name]))


def images_of(spec: dict[str, Any]) -> dict[str, str]:
    return {name: executor["container"]["image"] for name, executor in spec["deploymentSpec"]["executors"].items()}


def images_in(node: object) -> Iterator[str]:
    """Every container's image below `node`, those in pipelines that a ConfigMap holds as text too."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "image" and isinstance(value, str):
                yield value
            elif isinstance(value, str) and "deploymentSpec:" in value:
                yield from images_in(list(yaml.safe_load_all(value)))
            else:
                yield from images_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from images_in(value)


def test_the_variants() -> None:
    assert VARIANTS == ["kubernetes-native", "multi-user", "shared-cluster", "standalone"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_helm_lints_every_variant_without_a_warning(variant: str) -> None:
    done = helm("lint", HUB, "--strict", "--values", HUB / "ci" / f"{variant}-values.yaml")

    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_says_whose_it_is(variant: str, render: Render) -> None:
    for found in render(HUB, variant):
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "fedhelp"
        assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "fedhelp-hub"


@pytest.mark.parametrize("variant", VARIANTS)
def test_federation_yaml_is_one_that_check_takes(variant: str, render: Render) -> None:
    text = render(HUB, variant).one("ConfigMap", "fedhelp-federation")["data"]["federation.yaml"]

    federation = parse_federation(yaml.safe_load(text), source="the chart's")

    assert federation.name == "melanoma"
    assert {silo.dispatch.kind for silo in federation.silos} == {"kubernetes"}
    assert federation.store.url.startswith("s3://")
    assert federation.tracking.uri, "MLflow could be nowhere: check would refuse the run"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_image_comes_from_the_registry_that_the_values_name(variant: str, render: Render) -> None:
    values = yaml.safe_load((HUB / "ci" / f"{variant}-values.yaml").read_text())
    registry = values["image"]["repository"].split("/")[0]
    found = set(images_in(list(render(HUB, variant))))

    assert {image.rpartition("/")[2].partition(":")[0] for image in found} == {"hub", "silo"}
    assert not [image for image in found if not image.startswith(f"{registry}/")]


def test_names_that_pipelines_refer_to_are_the_charts(render: Render) -> None:
    assert render(HUB, "shared-cluster").has("ConfigMap", FEDERATION_CONFIG_MAP)
    names = (HUB / "templates" / "_names.tpl").read_text()
    assert f"-}}}}{STORE_SECRET}{{{{-" in names
    assert f"-}}}}{MLFLOW_SECRET}{{{{-" in names


@pytest.mark.parametrize(("values", "said"), [
    ({"federation": {"nmae": "x"}}, "additional properties 'nmae' not allowed"),
    ({"federation": {"algorithm": {"rounds": 0}}}, "/federation/algorithm/rounds"),
    ({"federation": {"algorithm": {"method": "fedhlep"}}}, "/federation/algorithm/method"),
    ({"federation": {"silos": [{"name": "Charité", "dispatch": {"kind": "kubernetes"}}]}}, "/federation/silos/0/name"),
    ({"federation": {"silos": []}}, "/federation/silos"),
    ({"pipelines": {"names": ["fedavg"]}}, "/pipelines/names/0"),
    ({"pipelines": {"endpoint": "ml-pipeline:8888"}}, "/pipelines/endpoint"),
    ({"federated": {}}, "additional properties 'federated' not allowed"),
    ({"publicImages": {"claimName": "public"}}, "federation.public_set.images must say where the public images are mounted"),
    ({"image": {"repository": "registry.example:5000/hub:0.1"}}, '"registry.example:5000/hub:0.1" names a tag; write it into image.tag'),
    ({"siloImage": {"repository": "silo@sha256:abc"}}, "names a digest; write it into siloImage.digest"),
    ({"federation": {"silos": [{"name": "commit", "dispatch": {"kind": "kubernetes"}}]}},
     'federation.silos: "commit" is what an object of each run is called; choose another name'),
    ({"federation": {"silos": [{"name": "nord", "dispatch": {"kind": "kubernetes"}}] * 2}}, 'federation.silos: "nord" is there twice; names differ'),
])
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str, refusal: Refusal) -> None:
    assert said in refusal(HUB, "shared-cluster", values)


def test_a_chart_without_a_federation_is_refused() -> None:
    assert "missing properties 'name', 'store', 'silos'" in helm("template", "x", HUB).stderr


def test_the_runs_account_may_start_no_job_and_read_no_secret_but_kubeflows(render: Render) -> None:
    objects = render(HUB, "shared-cluster")
    rules = objects.one("Role", "fedhelp-runs")["rules"]

    assert not any("jobs" in rule["resources"] for rule in rules)
    assert [rule.get("resourceNames") for rule in rules if "secrets" in rule["resources"]] == [["mlpipeline-minio-artifact"]]

    assert not any("*" in rule["verbs"] or "*" in rule["resources"] for rule in rules)
    assert not objects.has("ClusterRole")


@pytest.mark.parametrize("secrets", [["kubeflow-artifacts"], []])
def test_the_account_of_runs_reads_the_secrets_that_artifacts_are_stored_with_and_no_other(secrets: list[str], render: Render) -> None:
    rules = render(HUB, "standalone", {"serviceAccount": {"artifactSecrets": secrets}}).one("Role", "fedhelp-runs")["rules"]
    assert [rule["resourceNames"] for rule in rules if "secrets" in rule["resources"]] == ([secrets] if secrets else [])


def test_pods_of_a_run_get_the_registrys_credentials_from_their_account(render: Render) -> None:
    values = {"image": {"pullSecrets": ["registry-credentials", "another"]}}
    objects = render(HUB, "shared-cluster", values)
    expected = [{"name": "registry-credentials"}, {"name": "another"}]

    assert objects.one("ServiceAccount", "fedhelp-runs")["imagePullSecrets"] == expected
    assert objects.one("Job", "fedhelp-register")["spec"]["template"]["spec"]["imagePullSecrets"] == expected
    assert "imagePullSecrets" not in render(HUB, "shared-cluster").one("ServiceAccount", "fedhelp-runs")


def test_a_profiles_own_account_is_left_alone(render: Render) -> None:
    objects = render(HUB, "multi-user")

    assert not objects.has("ServiceAccount")
    assert not objects.has("Role")
    assert objects.one("Job", "fedhelp-register")["spec"]["template"]["spec"]["serviceAccountName"] == "default-editor"


def test_a_job_uploads_the_pipelines_after_install_and_upgrade(render: Render) -> None:
    job = render(HUB, "shared-cluster").one("Job", "fedhelp-register")
    container = job["spec"]["template"]["spec"]["containers"][0]

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    assert container["command"] == ["fedhelp", "register"]
    assert container["args"] == [
        "--endpoint", "http://ml-pipeline.kubeflow:8888", "/etc/fedhelp-pipelines/fedhelp.yaml", "/etc/fedhelp-pipelines/fedhelp-compact.yaml"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_job_removes_them_before_the_release_goes(render: Render) -> None:
    job = render(HUB, "shared-cluster").one("Job", "fedhelp-unregister")

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "--remove"
    assert not render(HUB, "shared-cluster", {"pipelines": {"removeOnUninstall": False}}).has("Job", "fedhelp-unregister")


def test_a_multi_user_kubeflow_is_shown_a_token_of_its_audience(render: Render) -> None:
    pod = render(HUB, "multi-user").one("Job", "fedhelp-register")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    token = next(v for v in pod["volumes"] if v["name"] == "token")["projected"]["sources"][0]["serviceAccountToken"]
    folder = next(m for m in container["volumeMounts"] if m["name"] == "token")["mountPath"]

    assert token["audience"] == "pipelines.kubeflow.org"
    assert {"name": "KF_PIPELINES_SA_TOKEN_PATH", "value": f"{folder}/{token['path']}"} in container["env"]
    assert "--namespace" in container["args"]
    assert pod["automountServiceAccountToken"] is False


def test_tasks_run_in_this_installations_images(render: Render) -> None:
    digest = "sha256:" + "0" * 64
    values = {"image": {"repository": "registry.example/hub"}, "siloImage": {"repository": "registry.example/silo", "digest": digest}}
    spec, _platform = uploaded(render(HUB, "shared-cluster", values))

    assert set(images_of(spec).values()) == {"registry.example/hub:0.1.0", f"registry.example/silo@{digest}"}
    assert images_of(spec)["exec-check"] == "registry.example/hub:0.1.0"


def shown_by(objects: Rendered) -> dict[str, Any]:
    """The form's parameters as the UI shows them before anybody touches it."""
    inputs = uploaded(objects)[0]["root"]["inputDefinitions"]["parameters"]
    return {parameter: inputs[parameter]["defaultValue"] for parameter in FIELDS}


@pytest.mark.parametrize("task", sorted(PRESETS))
def test_the_form_shows_what_the_federation_says(task: str, render: Render) -> None:
    """Whoever changes nothing in it runs the federation as its file has it."""
    by_task = {"task": {"name": task, "image_size": 64}}
    itself = {
        "algorithm": {"rounds": 7, "rank_weight": 0, "optimizer": {"learning_rate": 0.01}}, "runtime": {"seed": 0},
        "protocol": {"min_silos": 2, "round_deadline": 90, "lease": 60}, "promotion": {"mode": "manual"}}

    for said in (by_task, by_task | itself):
        objects = render(HUB, "kubernetes-native", {"federation": said, "pipelines": {"kubernetesNative": False}})
        document = yaml.safe_load(objects.one("ConfigMap", "fedhelp-federation")["data"]["federation.yaml"])
        assert shown_by(objects) == form_of(parse_federation(document, source="the chart's"))


def test_the_form_of_kubernetes_native_pipelines_shows_it_too(render: Render) -> None:
    objects = render(HUB, "kubernetes-native", {"federation": {"algorithm": {"rounds": 7}}})
    inputs = objects.one("PipelineVersion")["spec"]["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]

    assert inputs["rounds"]["defaultValue"] == 7
    assert inputs["local_epochs"]["defaultValue"] == 1


def test_an_exported_template_may_be_a_files_content(render: Render, refusal: Refusal) -> None:
    """What `--set-file federation.silos[0].dispatch.job_template=FILE` gives, and the same written out."""
    exported = {"kind": "CronJob", "metadata": {"uid": "1"}, "spec": {"suspend": True, "jobTemplate": {"spec": {"backoffLimit": 3}}}}

    def silos(template: object) -> dict[str, Any]:
        dispatch = {"kind": "manifestwork", "cluster": "clinic", "job_template": template}
        return {"federation": {"silos": [{"name": "aachen", "dispatch": dispatch}]}}

    for template in (exported, yaml.safe_dump(exported)):
        text = render(HUB, "shared-cluster", silos(template)).one("ConfigMap", "fedhelp-federation")["data"]["federation.yaml"]
        federation = parse_federation(yaml.safe_load(text), source="the chart's")
        assert (federation.silos[0].dispatch.job_template or {})["spec"]["jobTemplate"] == {"spec": {"backoffLimit": 3}}
    for wrong in ("berlin-worker.yaml", "kind: CronJob", "kind: CronJob\nspec: {}"):
        assert "aachen: dispatch.job_template holds no CronJob" in refusal(HUB, "shared-cluster", silos(wrong))


def test_a_method_that_no_pipeline_runs_is_refused(refusal: Refusal) -> None:
    assert "a pipeline runs method fedhelp, fedavg, " in refusal(HUB, "shared-cluster", {"federation": {"algorithm": {"method": "local"}}})


def test_tasks_get_federation_yaml_and_credentials_where_they_exist(render: Render) -> None:
    spec, platform = uploaded(render(HUB, "shared-cluster"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    for settings in executors.values():
        assert [(m["configMapName"], m["mountPath"], m["optional"]) for m in settings["configMapAsVolume"]] == [
            ("fedhelp-federation", "/etc/fedhelp", True)]
        assert {s["secretName"] for s in settings["secretAsEnv"] if s["optional"]} == {"fedhelp-store", "fedhelp-mlflow"}


def test_a_secret_for_teachers_is_mounted_where_they_are_asked_and_nowhere_else(render: Render) -> None:
    _, platform = uploaded(render(HUB, "shared-cluster"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = {name: [(s["secretName"], s["mountPath"], s["optional"]) for s in settings["secretAsVolume"] if s["secretName"] == TEACHERS_SECRET]
              for name, settings in executors.items()}
    assert {name for name, found in mounts.items() if found} == {name for name in executors if name.startswith("exec-soft-label-prefetch")}
    assert all(found == [(TEACHERS_SECRET, TEACHERS_FOLDER, True)] for found in mounts.values() if found)


def test_public_images_are_mounted_where_federation_yaml_says(render: Render) -> None:
    platform = render(HUB, "kubernetes-native").one("PipelineVersion")["spec"]["platformSpec"]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = {name: settings["pvcMount"][0] for name, settings in executors.items() if "pvcMount" in settings}

    assert mounts.keys() == {"exec-check", "exec-soft-label-prefetch", "exec-soft-label-prefetch-2"}  # asking, and building the set
    assert {(m["constant"], m["mountPath"]) for m in mounts.values()} == {("public-images", "/public")}


def test_check_is_told_which_account_the_hospitals_know_and_where_the_store_is(render: Render) -> None:
    data = render(HUB, "shared-cluster").one("ConfigMap", "fedhelp-federation")["data"]

    assert (data["FEDHELP_SERVICE_ACCOUNT"], data["FEDHELP_STORE_ENDPOINT"]) == ("fedhelp-runs", "http://minio.storage:9000")


@pytest.mark.parametrize("names", [["charite"], ["charite", "nord", "sued"]])
def test_every_silo_of_the_values_has_a_node_as_the_product_compiles_it(names: list[str], render: Render) -> None:
    silos = [{"name": name, "dispatch": {"kind": "kubernetes"}} for name in names]
    tasks = uploaded(render(HUB, "shared-cluster", {"federation": {"silos": silos}}))[0]["root"]["dag"]["tasks"]
    carried = yaml.safe_load((HUB / "files" / "pipelines" / "fedhelp.yaml").read_text().partition("\n---\n")[0])
    pattern = json.dumps(carried["root"]["dag"]["tasks"]["train-HOSPITAL"])

    assert {name: task for name, task in tasks.items() if name.startswith("train-")} == {
        f"train-{name}": json.loads(pattern.replace("HOSPITAL", name)) for name in names}
    assert tasks["check"]["inputs"]["parameters"]["nodes"] == {"runtimeValue": {"constant": names}}
    assert {name for name in tasks if not name.startswith("train-")} == {*carried["root"]["dag"]["tasks"]} - {"train-HOSPITAL"}


def test_more_silos_than_anybody_reads_are_left_to_the_loop(render: Render) -> None:
    silos = [{"name": f"h{number}", "dispatch": {"kind": "kubernetes"}} for number in range(51)]
    tasks = uploaded(render(HUB, "shared-cluster", {"federation": {"silos": silos}}))[0]["root"]["dag"]["tasks"]

    assert not [name for name in tasks if name.startswith("train-")]
    assert tasks["check"]["inputs"]["parameters"]["nodes"] == {"runtimeValue": {"constant": []}}


def test_a_kubernetes_native_kubeflow_gets_resources_instead_of_a_job(render: Render) -> None:
    objects = render(HUB, "kubernetes-native")
    version = objects.one("PipelineVersion")

    assert objects.one("Pipeline")["metadata"]["namespace"] == "kubeflow"
    assert version["spec"]["pipelineName"] == objects.one("Pipeline")["metadata"]["name"] == "fedhelp"
    assert version["spec"]["pipelineSpec"]["pipelineInfo"]["name"] == "fedhelp"
    assert not objects.has("Job")


def test_a_version_is_named_by_its_content(render: Render) -> None:
    def name(values: dict[str, Any]) -> str:
        found: str = render(HUB, "kubernetes-native", values).one("PipelineVersion")["metadata"]["name"]
        return found

    assert name({}) == name({"metrics": {"pushgateway": ""}})
    assert name({}) != name({"image": {"tag": "0.2.0"}})


def test_native_pipelines_without_the_api_are_refused_with_the_next_step(refusal: Refusal) -> None:
    said = refusal(HUB, "kubernetes-native", {}, apis=tuple(api for api in OPTIONAL_APIS if "Pipeline" not in api))

    assert "set it to false, and pipelines.endpoint to Kubeflow's API" in said


def test_alerts_come_as_a_config_map_or_for_the_operator(render: Render) -> None:
    plain = yaml.safe_load(render(HUB, "shared-cluster").one("ConfigMap", "fedhelp-alerts")["data"]["fedhelp.rules.yaml"])
    rule = render(HUB, "kubernetes-native").one("PrometheusRule")

    assert plain == rule["spec"]
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_grafana_finds_the_dashboard(render: Render) -> None:
    board = render(HUB, "shared-cluster").one("ConfigMap", "fedhelp-dashboard")

    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert yaml.safe_load(board["data"]["fedhelp.json"])["title"] == "FedHelp"


def test_the_pushgateway_reaches_every_task(render: Render) -> None:
    objects = render(HUB, "shared-cluster", {"metrics": {"pushgateway": "pushgateway.monitoring:9091"}})
    _spec, platform = uploaded(objects)

    assert objects.one("ConfigMap", "fedhelp-federation")["data"]["FEDHELP_PUSHGATEWAY"] == "pushgateway.monitoring:9091"
    for settings in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert settings["configMapAsEnv"][0]["keyToEnv"] == [
            {"configMapKey": key, "envVar": key} for key in ("FEDHELP_PUSHGATEWAY", "FEDHELP_SERVICE_ACCOUNT", "FEDHELP_STORE_ENDPOINT")]


def test_the_notes_say_the_next_step() -> None:
    done = helm("install", "mine", HUB, "--namespace", "fedhelp", "--dry-run=client", "--values", HUB / "ci" / "shared-cluster-values.yaml")
    notes = done.stdout.split("NOTES:")[1]

    assert "kubectl create secret generic fedhelp-store -n fedhelp" in notes
    assert "{kind: ServiceAccount, name: fedhelp-runs, namespace: fedhelp}" in notes
    assert "MLflow is expected at http://mlflow.mlflow:5000 (federation.tracking.uri)" in notes


def test_the_notes_say_that_mlflows_address_is_missing() -> None:
    done = helm(
        "install", "mine", HUB, "--dry-run=client", "--values", HUB / "ci" / "shared-cluster-values.yaml", "--set", "federation.tracking.uri=null")

    assert "federation.tracking.uri is missing" in done.stdout.split("NOTES:")[1]


def test_runs_trust_what_the_chart_s_federation_names_and_what_the_values_add(render: Render) -> None:
    objects = render(HUB, "kubernetes-native", {"trust": {"teacherHosts": ["other.models:8080"], "storeUrls": ["s3://second"]}})
    trust = json.loads(objects.one("ConfigMap", FEDERATION_CONFIG_MAP)["data"]["trust.json"])
    assert Trust.model_validate(trust) == Trust(
        teacher_hosts=("other.models:8080", "teacher.models"), store_urls=("s3://second", "s3://federation/melanoma"),
        store_endpoints=("https://s3.hub.example",), tracking_uris=("http://mlflow.mlflow:5000",))


def test_an_mlflow_teacher_is_refused_until_the_values_allow_its_code(render: Render, refusal: Refusal) -> None:
    teachers = [{"name": "derma", "uri": "models:/derma/1", "classes": 8}]
    values = {"federation": {"public_set": {"images": "/public", "teachers": teachers}}}
    assert "derma is an MLflow model, which runs its author's code in the hub; set trust.pyfunc" in refusal(HUB, "kubernetes-native", values)
    objects = render(HUB, "kubernetes-native", {**values, "trust": {"pyfunc": True}})
    trust = Trust.model_validate(json.loads(objects.one("ConfigMap", FEDERATION_CONFIG_MAP)["data"]["trust.json"]))
    assert trust.pyfunc and trust.model_uris == ("models:/derma/1",)


def test_every_task_of_a_run_is_told_whom_to_trust(render: Render) -> None:
    spec, _ = uploaded(render(HUB, "shared-cluster"))
    for executor in spec["deploymentSpec"]["executors"].values():
        assert {"name": "FEDHELP_TRUST", "value": "/etc/fedhelp/trust.json"} in executor["container"]["env"]
