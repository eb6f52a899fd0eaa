"""The images as a hospital's cluster runs them: read-only root, no capabilities, an unknown uid, nothing writable but /tmp and volumes.

    pytest tests/images -m e2e        # needs Docker; as root on Debian, Docker and a base image are installed and made
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from benchmarks.steps import mlflow_server
from fedhelp_core.config.federation import parse_federation
from fedhelp_core.data.phantom.fed_isic import SITES, write_fed_isic
from fedhelp_core.errors import ConfigError
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_pipelines.compile import compiled
from tests.images.built import built_image, contained

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

RUN, SILO = "smoke", "amsterdam"
HUB_COMPONENTS = ("check", "aggregation", "federation", "left_out", "promotion", "silo_training")


@pytest.fixture(scope="session")
def hub() -> str:
    return built_image("hub")


@pytest.fixture(scope="session")
def silo() -> str:
    return built_image("silo")


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def inspected(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True).stdout)[0]
    return found


@pytest.mark.parametrize("name", ["hub", "silo"])
def test_a_pod_that_must_not_run_as_root_may_run_it_and_its_labels_say_what_it_is(name: str) -> None:
    config = inspected(built_image(name))["Config"]
    assert config["User"] == "10001:10001"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == f"FedHelp {name}"
    assert len(labels["revision"]) >= 40
    assert set(labels) >= {"description", "version", "licenses", "created", "base.name"}


class TestHub:
    def test_it_is_small_and_has_no_pytorch(self, hub: str) -> None:
        assert inspected(hub)["Size"] < 400e6
        assert "ModuleNotFoundError: No module named 'torch'" in contained(hub, "python3", "-c", "import torch").stderr

    def test_every_component_of_the_hub_imports_and_explains_itself(self, hub: str) -> None:
        script = "set -e; for name in {names}; do python3 -m fedhelp_components.$name --help; done; fedhelp --help"
        said = output_of(contained(hub, "sh", "-c", script.format(names=" ".join(HUB_COMPONENTS))))
        assert [name for name in HUB_COMPONENTS if f"python -m fedhelp_components.{name} " not in said] == []

    @pytest.mark.parametrize("pipeline", ["fedhelp", "fedhelp-compact"])
    def test_it_compiles_the_pipelines_as_they_compile_here(self, hub: str, pipeline: str) -> None:
        said = output_of(contained(hub, "sh", "-c", f"cd /tmp && fedhelp compile --pipeline {pipeline} >&2 && cat {pipeline}.yaml"))
        assert said == compiled(pipeline)

    def test_a_component_started_as_kubeflow_starts_it_ends_with_its_sentence_and_exit_code(self, hub: str) -> None:
        spec = next(iter(yaml.safe_load_all(compiled("fedhelp"))))
        container = spec["deploymentSpec"]["executors"]["exec-check"]["container"]
        defaults = {name: field.get("defaultValue") for name, field in spec["root"]["inputDefinitions"]["parameters"].items()}
        inputs = {name: defaults.get(name, "x") for name in spec["components"]["comp-check"]["inputDefinitions"]["parameters"]}
        inputs |= {"federation": "/etc/fedhelp/missing.yaml"}
        given = json.dumps({"inputs": {"parameterValues": inputs}, "outputs": {"outputFile": "/tmp/outputs.json"}})
        done = contained(hub, *container["command"], *[argument.replace("{{$}}", given) for argument in container["args"]])
        assert done.returncode == ConfigError.exit_code, done.stderr
        assert "check: error: /etc/fedhelp/missing.yaml" in done.stderr


@dataclass(frozen=True)
class Federated:
    """What the containers of one small federation left."""

    run: Run
    said: dict[str, str]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as (address, _log):
        yield address


@pytest.fixture(scope="module")
def federated(hub: str, silo: str, tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Federated:
    """One hospital, one round, every step in a container of the image that it runs in on a cluster; data read-only."""
    folder = tmp_path_factory.mktemp("federated")
    data, state, store, settings = (folder / name for name in ("data", "state", "store", "settings"))
    write_fed_isic(data, seed=3, sites=[replace(SITES[0], train=10, test=9)])
    for writable in (state, store):
        writable.mkdir()
        writable.chmod(0o777)  # a volume of the container's own user, whoever that is
    settings.mkdir()
    federation = parse_federation({
        "name": "smoke", "task": {"image_size": 16}, "store": {"url": "/store"}, "tracking": {"uri": tracking},
        "algorithm": {"method": "fedavg", "rounds": 1, "proxy_model": "resnet8", "large_model": "resnet8"},
        "runtime": {"threads": 1, "device": "cpu"},
        "silos": [{"name": SILO, "dispatch": {"kind": "process", "silo_config": "/etc/fedhelp/silo.yaml"}}]}, source="the test")
    (settings / "federation.yaml").write_text(federation.to_yaml(), encoding="utf-8")
    (settings / "silo.yaml").write_text(yaml.safe_dump({
        "name": SILO, "state": "/state",
        "data": {"layout": "fed-isic2019", "images": "/data/images", "split_csv": "/data/train_test_split.csv", "center": 0}}), encoding="utf-8")
    run = Run(open_store(str(store)), RUN)
    run.freeze(federation.to_yaml())
    for path in [store, *store.rglob("*")]:
        path.chmod(0o777)
    at_hub = {store: "/store", settings: "/etc/fedhelp:ro"}
    in_silo = {**at_hub, data: "/data:ro", state: "/state"}
    worker = ("python3", "-m", "fedhelp_dispatch.worker")
    where = ("--store", "/store", "--run", RUN)

    def step(image: str, *command: str) -> str:
        mounts = in_silo if image == silo else at_hub
        done = contained(image, *command, mounts=mounts, network="host", environment={"NO_PROXY": "127.0.0.1"})
        return output_of(done) + done.stderr

    of_silo = (*where, "--silo-config", "/etc/fedhelp/silo.yaml")
    said = {"worker check": step(silo, *worker, "check", *of_silo)}
    said["check"] = step(hub, "python3", "-m", "fedhelp_components.check", "--federation", "/etc/fedhelp/federation.yaml", "--run-id", RUN)
    said["soft_label_prefetch"] = step(silo, "python3", "-m", "fedhelp_components.soft_label_prefetch", *where)
    said["worker train"] = step(silo, *worker, "train", *of_silo, "--round", "1")
    said["aggregation"] = step(hub, "python3", "-m", "fedhelp_components.aggregation", *where)
    said["worker evaluate"] = step(silo, *worker, "evaluate", *of_silo)
    said["evaluation"] = step(silo, "python3", "-m", "fedhelp_components.evaluation", *where)
    said["promotion"] = step(hub, "python3", "-m", "fedhelp_components.promotion", *where, "--model-version", "1")
    return Federated(run, said)


class TestFederation:
    def test_the_hospitals_worker_trains_on_read_only_data_and_the_hub_averages(self, federated: Federated) -> None:
        commit = federated.run.commit(1)
        assert commit is not None
        assert commit.participants == (SILO,) or list(commit.participants) == [SILO]
        assert federated.said["aggregation"].splitlines()[0].startswith("round 1 of 1: 1 silos")

    def test_the_silo_image_logs_a_model_and_the_hub_image_promotes_it_over_mlflows_client(self, federated: Federated) -> None:
        assert "smoke version 1 became the champion" in federated.said["promotion"]

    def test_nothing_complains_about_read_only_homes_missing_git_or_caches(self, federated: Federated) -> None:
        words = ("read-only", "permission denied", "git", "warning", "traceback", "not a writable directory", "libcu")
        complaints = [
            f"{step}: {line}" for step, said in federated.said.items() for line in said.splitlines() if any(word in line.lower() for word in words)]
        assert complaints == []
