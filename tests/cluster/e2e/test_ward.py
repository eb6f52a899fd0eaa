"""The hospitals' half: two adopt the champion by Jobs, one serves it, a client that is not ours asks, and the pods follow what is adopted."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.config.federation import load_federation
from fedhelp_core.tracking.registry import Registry
from tests.cluster.e2e.hospitals import Hospital, make_secret
from tests.cluster.e2e.world import World
from tests.cluster.node import HOST_NAME
from tests.cluster.processes import wait_for
from tests.core.softlabels.model_servers import NoEnvironment, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
TOKEN = "secret"
MODEL = "e2e"  # the federation's name
TRITON_ASKS = Path(__file__).parents[2] / "core" / "serving" / "triton_asks.py"


@dataclass(frozen=True)
class Hub:
    """The hub's command line, on this machine."""

    federation: Path

    @classmethod
    def of(cls, world: World) -> Hub:
        path = world.folder / "federation.yaml"
        path.write_text(json.dumps(world.document).replace(HOST_NAME, "127.0.0.1"))
        return cls(path)

    def champion(self) -> str | None:
        return Registry.for_federation(load_federation(self.federation)).champion(MODEL)

    def promote_candidate(self) -> str:
        """By hand: on so few images the gate may well refuse it."""
        typed("promote", str(self.federation), "--reason", "the hospitals' test")
        champion = self.champion()
        assert champion is not None
        return champion


@dataclass(frozen=True)
class Ward:
    """A hospital that takes models into use."""

    hospital: Hospital
    silo: Path
    """silo.yaml as this machine reads it: the same state folder, the same images."""

    @classmethod
    def of(cls, world: World, hospital: Hospital) -> Ward:
        silo = world.folder / f"ward-{hospital.name}.yaml"
        silo.write_text(yaml.safe_dump({
            "version": 1, "name": hospital.name, "state": str(hospital.folder / "state"),
            "data": {"layout": "fed-isic2019", "images": str(world.folder / "hospitals" / "images"), "center": hospital.center,
                     "split_csv": str(world.folder / "hospitals" / "train_test_split.csv"), "validation_fraction": 0.0}}))
        return cls(hospital, silo)

    def kubectl(self, *arguments: str) -> str:
        return self.hospital.cluster.kubectl("-n", self.hospital.namespace, *arguments)

    def run(self, job: str, template: str = "fedhelp-model") -> str:
        """What a person does to adopt, or to go back; the Job's log."""
        self.kubectl("create", "job", job, f"--from=cronjob/{template}")

        def ended() -> bool:
            return bool({"succeeded", "failed"} & set(json.loads(self.kubectl("get", "job", job, "-o", "json"))["status"]))

        assert wait_for(ended, 300, pause=1), self.kubectl("describe", "job", job)
        log = self.kubectl("logs", f"job/{job}")
        assert json.loads(self.kubectl("get", "job", job, "-o", "json"))["status"].get("succeeded") == 1, log
        return log

    def server(self) -> str:
        """Address of the pod that serves, once it is ready."""
        self.kubectl("rollout", "status", "deployment/fedhelp-serving", "--timeout=300s")
        [pod] = json.loads(self.kubectl("get", "pods", "-l", "app.kubernetes.io/name=fedhelp-serving", "-o", "json"))["items"]
        return f"{pod['status']['podIP']}:8080"

    def predicted(self, image: Path, out: Path) -> dict[str, Any]:
        """`fedhelp predict`'s row of `image`, on this machine."""
        typed("predict", str(image), "--silo", str(self.silo), "--device", "cpu", "--out", str(out), "--no-pictures")
        [row] = json.loads((out / "results.json").read_text())["answers"]
        return dict(row)


def typed(*arguments: str) -> None:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output


def asked(python: Path, server: str, image: Path) -> dict[str, Any]:
    """What Triton's client gets of the server."""
    done = subprocess.run([str(python), str(TRITON_ASKS), server, str(image), TOKEN, MODEL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_two_hospitals_adopt_one_serves_and_the_served_version_follows(world: World, tmp_path: Path) -> None:
    try:
        python = environment("triton-client", "tritonclient[http]==2.73.0")
    except NoEnvironment as e:
        pytest.skip(str(e))
    hub, image = Hub.of(world), next((world.folder / "hospitals" / "images").glob("*.jpg"))
    north, south = (Ward.of(world, world.hospital(name)) for name in ("north", "south"))
    for ward in (north, south):
        make_secret(ward.hospital.cluster, ward.hospital.namespace, "fedhelp-serving-token", {"token": TOKEN})
        ward.hospital.upgrade(serving={
            "enabled": True, "replicas": 1 if ward is north else 0, "resources": {"requests": {"cpu": "100m", "memory": "512Mi"},
                                                                                 "limits": {"cpu": "2", "memory": "3Gi"}}},
            adoption={"tolerance": 1.0})
    if hub.champion() is None:
        world.new_run("fedhelp-compact").run({"run_id": "month-one", "rounds": 1})
    first = hub.champion() or hub.promote_candidate()
    for ward in (north, south):
        assert f"in use now: {MODEL} version {first}" in ward.run("adopt-1")
    served = asked(python, north.server(), image)
    assert served["metadata"]["versions"] == [first]
    assert equal(served, north.predicted(image, tmp_path / "first"))

    world.new_run("fedhelp-compact").run({"run_id": "month-two", "rounds": 1, "seed": 2})
    second = hub.promote_candidate()
    assert second != first
    assert f"in use now: {MODEL} version {second}" in north.run("adopt-2")
    assert follows(python, north, image, second)
    assert equal(asked(python, north.server(), image), north.predicted(image, tmp_path / "second"))

    assert f"in use again: {MODEL} version {first}" in north.run("back-1", template="fedhelp-model-rollback")
    assert follows(python, north, image, first)
    assert asked(python, north.server(), image)["binary"] == served["binary"]


def equal(served: dict[str, Any], predicted: dict[str, Any]) -> bool:
    """Whether the server's probabilities are `fedhelp predict`'s, to the last bit, and its decision and image too."""
    for encoding in ("binary", "json"):
        said = served[encoding]
        assert said["probabilities"] == [list(predicted["probabilities"].values())]
        assert (said["decision"], said["sha256"]) == ([predicted["decision"]], [predicted["sha256"]])
    return True


def follows(python: Path, ward: Ward, image: Path, version: str) -> bool:
    """Whether the same pods come to answer with `version`."""
    return wait_for(lambda: asked(python, ward.server(), image)["metadata"]["versions"] == [version], 60, pause=1)
