"""Chart fedhelp-silo serves a model: what its pods may, who may ask, and that nothing is there unless it is asked for."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.config.silo import AdoptionConfig
from tests.helm.conftest import SILO, Rendered

Render = Callable[..., Rendered]


def pod_of(objects: Rendered) -> dict[str, Any]:
    pod: dict[str, Any] = objects.one("Deployment", "fedhelp-serving")["spec"]["template"]["spec"]
    return pod


def test_nothing_is_served_unless_it_is_asked_for(render: Render) -> None:
    objects = render(SILO, "own-cluster")
    assert not [found for found in objects if "serving" in found["metadata"]["name"]]
    assert objects.one("ResourceQuota")["spec"]["hard"]["pods"] == "4"


@pytest.mark.slow
def test_the_pods_command_is_one_that_the_product_has(render: Render) -> None:
    [container] = pod_of(render(SILO, "serving", {"serving": {"model": "skin"}}))["containers"]
    assert container["command"] == ["fedhelp"]
    arguments = container["args"]
    assert arguments[arguments.index("--name") + 1] == "skin" and arguments[arguments.index("--token-file") + 1] == "/etc/fedhelp-token/token"
    done = CliRunner().invoke(main, [*arguments, "--silo", "/nowhere/silo.yaml"])
    assert done.exit_code == 10 and "/nowhere/silo.yaml" in done.output, shlex.join(arguments)


def test_the_pod_is_hardened_and_sees_models_alone_of_what_the_hospital_keeps(render: Render) -> None:
    pod = pod_of(render(SILO, "serving"))
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == "fedhelp-serving" and "envFrom" not in container
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/state/models"] == {"name": "state", "mountPath": "/state/models", "subPath": "models", "readOnly": True}
    assert "/state" not in mounts and "/data" not in mounts
    written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert written == {"/state/answers", "/home/fedhelp", "/tmp"}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert pod["terminationGracePeriodSeconds"] > 60 + 5


def test_only_the_named_namespaces_may_ask_and_nothing_goes_out(render: Render) -> None:
    policy = render(SILO, "serving").one("NetworkPolicy", "fedhelp-serving")["spec"]
    asks, scrapes = policy["ingress"]
    assert asks == {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "pacs"}}}],
                    "ports": [{"protocol": "TCP", "port": 8080}]}
    assert scrapes["ports"] == [{"protocol": "TCP", "port": 9090}] and policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}
    closed = render(SILO, "serving", {"serving": {"namespaces": []}, "metrics": {"enabled": False}}).one("NetworkPolicy", "fedhelp-serving")
    assert closed["spec"]["ingress"] == []


def test_no_policy_of_the_workers_is_the_serving_pods_too(render: Render) -> None:
    objects = render(SILO, "serving")
    labels = objects.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for found in objects:
        if found["kind"] in ("NetworkPolicy", "PodMonitor", "PodDisruptionBudget", "Service"):
            spec = found["spec"]
            selector = spec.get("podSelector", spec.get("selector"))
            wanted = selector.get("matchLabels", selector if found["kind"] == "Service" else {})
            assert (wanted.items() <= labels.items()) == ("serving" in found["metadata"]["name"] or not wanted), found["metadata"]["name"]


def test_the_quota_has_room_for_the_serving_pods_and_the_next_ones(render: Render) -> None:
    objects = render(SILO, "serving", {"serving": {"gpu": {"count": 1}}})
    hard = objects.one("ResourceQuota")["spec"]["hard"]
    assert hard["pods"] == "7" and hard["requests.nvidia.com/gpu"] == "4"
    assert pod_of(objects)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "cuda" in pod_of(objects)["containers"][0]["args"]


def test_without_a_shared_volume_there_is_one_pod_which_ends_before_the_next(render: Render, refusal: Callable[..., str]) -> None:
    one = {"state": {"accessModes": ["ReadWriteOnce"]}, "serving": {"replicas": 1}}
    assert render(SILO, "serving", one).one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert render(SILO, "serving").one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "serving.replicas: more than one pod needs a state volume" in refusal(SILO, "serving", {"state": {"accessModes": ["ReadWriteOnce"]}})


def test_kserve_gets_the_same_pod(render: Render, refusal: Callable[..., str]) -> None:
    objects = render(SILO, "serving", {"serving": {"kserve": True}})
    predictor = objects.one("InferenceService", "fedhelp-serving")["spec"]["predictor"]
    assert not objects.has("Deployment") and not objects.has("Service", "fedhelp-serving")
    plain = pod_of(render(SILO, "serving"))
    [container], [same] = predictor["containers"], plain["containers"]
    assert container["name"] == "kserve-container" and {**container, "name": ""} == {**same, "name": ""}
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["volumes"]) == (2, 2, plain["volumes"])
    assert "install KServe first" in refusal(SILO, "serving", {"serving": {"kserve": True}}, apis=(
        "monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"))


def test_without_a_token_the_network_policy_alone_guards_it(render: Render) -> None:
    pod = pod_of(render(SILO, "serving", {"serving": {"tokenSecret": "", "tlsSecret": ""}}))
    assert "--no-token" in pod["containers"][0]["args"] and {volume["name"] for volume in pod["volumes"]} == {"state", "config", "home", "tmp"}
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"] == "HTTP"


def test_a_folder_that_only_root_could_write_to_is_never_mounted(render: Render) -> None:
    [first] = pod_of(render(SILO, "serving"))["initContainers"]
    assert first["command"] == ["mkdir", "-p", "/state/models", "/state/answers"]
    assert first["securityContext"]["readOnlyRootFilesystem"] and first["volumeMounts"] == [{"name": "state", "mountPath": "/state"}]


@pytest.mark.parametrize("name", ["fedhelp-model", "fedhelp-model-rollback"])
def test_a_person_adopts_and_goes_back_by_a_job_of_the_workers_pod_on_the_serving_device(name: str, render: Render) -> None:
    objects = render(SILO, "serving", {"serving": {"model": "skin"}})
    job = objects.one("CronJob", name)["spec"]
    worker = objects.one("CronJob", "fedhelp-worker")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert job["suspend"] and job["jobTemplate"]["spec"]["backoffLimit"] == 0
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    [container], [workers] = pod.pop("containers"), worker.pop("containers")
    assert pod == worker
    assert workers["resources"]["limits"].pop("nvidia.com/gpu") and workers["resources"]["requests"].pop("nvidia.com/gpu")
    changed = {key for key in {*container, *workers} if container.get(key) != workers.get(key)}
    assert changed == {"command", "args"} and container["command"] == ["fedhelp"] and container["args"][-2:] == ["--name", "skin"]
    done = CliRunner().invoke(main, [*container["args"], "--silo", "/nowhere/silo.yaml"])
    assert done.exit_code == 10 and "/nowhere/silo.yaml" in done.output


def test_adoption_by_schedule_leaves_going_back_to_people(render: Render, refusal: Callable[..., str]) -> None:
    objects = render(SILO, "serving", {"serving": {"adoptSchedule": "0 3 * * 0", "gpu": {"count": 1}}})
    adopting, back = (objects.one("CronJob", name)["spec"] for name in ("fedhelp-model", "fedhelp-model-rollback"))
    assert (adopting["schedule"], adopting["suspend"], back["suspend"]) == ("0 3 * * 0", False, True)
    [container] = adopting["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == "cuda" and container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "adoptSchedule" in refusal(SILO, "serving", {"serving": {"adoptSchedule": "weekly"}})
    assert not render(SILO, "own-cluster").has("CronJob", "fedhelp-model")


def test_the_record_is_read_where_the_runs_are_unless_the_hospital_names_another_place(render: Render) -> None:
    def adoption(values: dict[str, Any]) -> dict[str, Any]:
        silo = yaml.safe_load(render(SILO, "serving", values).one("ConfigMap", "fedhelp-silo")["data"]["silo.yaml"])
        return dict(silo["adoption"])

    assert adoption({"store": {"endpointUrl": "https://s3.hub.example"}}) == {
        "store": "s3://federation/runs", "endpoint_url": "https://s3.hub.example", "undecided_margin": 0.3}
    elsewhere = {"adoption": {"store": "/data/record"}, "store": {"endpointUrl": "https://s3"}}
    assert adoption(elsewhere) == {"store": "/data/record", "undecided_margin": 0.3}


def test_alert_rules_and_dashboard_come_with_it(render: Render) -> None:
    objects = render(SILO, "serving")
    assert objects.one("PrometheusRule", "fedhelp-serving-alerts")["metadata"]["labels"]["release"] == "prometheus"
    assert objects.one("ConfigMap", "fedhelp-serving-dashboard")["metadata"]["labels"]["grafana_dashboard"] == "1"
    plain = render(SILO, "serving", {"metrics": {"alerts": {"prometheusRule": False}}})
    assert yaml.safe_load(plain.one("ConfigMap", "fedhelp-serving-alerts")["data"]["fedhelp-serving.rules.yaml"])["groups"]


@pytest.mark.parametrize("field", sorted(set(AdoptionConfig.model_fields)))
def test_the_chart_takes_every_setting_of_adoption(field: str, render: Render) -> None:
    default = AdoptionConfig.model_fields[field].default
    value = {"store": "s3://a/b", "endpoint_url": "https://s3", "model": "skin", "announce": True}.get(field, default)
    silo = yaml.safe_load(render(SILO, "serving", {"adoption": {field: value}}).one("ConfigMap", "fedhelp-silo")["data"]["silo.yaml"])
    assert silo["adoption"][field] == value
