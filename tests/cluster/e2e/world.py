"""The whole federation of the end-to-end tests: hub, hospitals, object store and MLflow. See conftest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml

from fedhelp_core.protocol.facts import Candidate
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.cluster.build import REPOSITORY
from tests.cluster.control_plane import write_kubeconfig
from tests.cluster.e2e import oracle, servers
from tests.cluster.e2e.graph import GraphRun
from tests.cluster.e2e.hospitals import (
    BUCKET,
    CREDENTIALS,
    HUB_ACCOUNT,
    HUB_NAMESPACE,
    IMAGES_REPOSITORY,
    SILO_TAG,
    VERSION,
    Hospital,
    endpoint_of,
    federation_document,
    helm,
    make_namespace,
    make_secret,
    make_volume,
)
from tests.cluster.node import Node
from tests.cluster.processes import Processes, wait_for
from tests.images.built import built_image


def build_images() -> list[str]:
    """The images of this working tree; without CUDA, which no machine of these tests has, the silo's is much smaller. Their names."""
    return [built_image(name, repository=IMAGES_REPOSITORY, version=VERSION) for name in ("hub", "silo")]


class World:
    """Installs everything by helm; removes it again on exit."""

    def __init__(self, node: Node, elsewhere: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.hospitals = [
            Hospital(name=name, center=center, node=where, folder=folder / name)
            for center, (name, where) in enumerate([("north", node), ("south", node), ("west", elsewhere)])]
        self._processes = Processes(folder / "servers")
        self.document: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            oracle.draw_input(self.folder)
            self.s3_port = servers.start_s3(self._processes, BUCKET)
            mlflow_port = servers.start_mlflow(self._processes, self.folder)
            self._install_hub_account()
            for hospital in self.hospitals:
                self._install_hospital(hospital)
            self.document = federation_document(
                self.hospitals, endpoint=endpoint_of(self.s3_port), tracking=endpoint_of(mlflow_port), contexts={"west": "west"})
            self._install_hub()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        self._processes.stop_all()

    def hospital(self, name: str) -> Hospital:
        """By name."""
        return next(hospital for hospital in self.hospitals if hospital.name == name)

    def store(self) -> Store:
        """The object store, as this machine reaches it."""
        return open_store(f"s3://{BUCKET}/melanoma", endpoint_url=f"http://127.0.0.1:{self.s3_port}")

    def final_sha256(self, run_id: str) -> str:
        """Of the model that a finished run registered."""
        return Run(self.store(), run_id).fact(Candidate).global_sha256

    def wait_for_round(self, run_id: str, number: int, seconds: float = 600) -> None:
        """Return when round `number` of the run is committed."""

        def committed() -> bool:
            commit = Run(self.store(), run_id).latest_commit()
            return commit is not None and commit.round >= number

        if not wait_for(committed, seconds, pause=0.2):
            raise RuntimeError(f"run {run_id} did not commit round {number} within {seconds:g} s")

    def new_run(self, pipeline: str = "fedhelp") -> GraphRun:
        """A run of the pipeline as the hub's chart registered it."""
        return GraphRun(self.node.cluster, self._registered(pipeline), namespace=HUB_NAMESPACE, service_account=HUB_ACCOUNT)

    def simulated_sha256(self) -> str:
        """What every undisturbed run must end in."""
        return oracle.simulated_sha256(self.document, {hospital.name: hospital.center for hospital in self.hospitals}, self.folder)

    # ---- what the platform team does

    def _install_hub(self) -> None:
        cluster = self.node.cluster
        cluster.kubectl("apply", "-f", str(Path(__file__).with_name("pipeline-crds.yaml")))
        cluster.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=30s")
        helm(cluster, HUB_NAMESPACE, "install", "fedhelp-hub", str(REPOSITORY / "helm" / "fedhelp-hub"), values={
            "federation": self.document, "publicImages": {"claimName": "public-images"},
            "image": {"repository": f"{IMAGES_REPOSITORY}/hub", "tag": VERSION},
            "siloImage": {"repository": f"{IMAGES_REPOSITORY}/silo", "tag": SILO_TAG},
            "pipelines": {"kubernetesNative": True}, "trust": {"pyfunc": True}})

    def _install_hub_account(self) -> None:
        """The namespace of the runs, the store's credentials and the public images: what the hub's chart expects to find."""
        make_namespace(self.node.cluster, HUB_NAMESPACE)
        make_secret(self.node.cluster, HUB_NAMESPACE, "fedhelp-store", CREDENTIALS)
        make_volume(self.node.cluster, HUB_NAMESPACE, "public-images", self.folder / "public")

    def _install_hospital(self, hospital: Hospital) -> None:
        """The hospital in the hub's cluster names the hub's account; the one elsewhere makes an account and hands its kubeconfig over."""
        here = hospital.node is self.node
        subjects = [{"kind": "ServiceAccount", "name": HUB_ACCOUNT, "namespace": HUB_NAMESPACE}] if here else []
        hospital.install(self.folder / "hospitals", endpoint=endpoint_of(self.s3_port), subjects=subjects)
        if not here:
            token = hospital.cluster.service_account_token(hospital.namespace, "fedhelp-hub")
            kubeconfig = write_kubeconfig(
                self.folder, hospital.name, hospital.cluster.cluster_entry(f"https://{self.node.gateway}:{hospital.cluster.port}"), {"token": token})
            make_secret(self.node.cluster, HUB_NAMESPACE, "fedhelp-kubeconfig", {"config": kubeconfig.read_text()})

    def _registered(self, pipeline: str) -> dict[str, Any]:
        """The spec of the pipeline's version in the hub's namespace."""
        found = yaml.safe_load(self.node.cluster.kubectl("-n", HUB_NAMESPACE, "get", "pipelineversions.pipelines.kubeflow.org", "-o", "yaml"))
        return next(dict(one["spec"]) for one in found["items"] if one["spec"]["pipelineName"] == pipeline)
