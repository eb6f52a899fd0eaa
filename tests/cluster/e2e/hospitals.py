"""What the end-to-end tests install: drawn hospitals, each in a namespace of its own, and the hub beside them; by helm, as people do.

Volumes are folders of this machine. The object store and MLflow are servers on this machine, as they would be somewhere else
in a hospital's network: pods reach them by name.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedhelp_core.data.phantom.dermoscopy import PUBLIC_LESIONS
from tests.cluster.build import REPOSITORY, binary
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import HOST_NAME, Node

HUB_NAMESPACE = "fedhelp"
HUB_ACCOUNT = "fedhelp-runs"
BUCKET = "federation"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "silo", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}
VERSION = "e2e"
SILO_TAG = f"{VERSION}-cpu"
IMAGES_REPOSITORY = "fedhelp-e2e"
_USER = 10001  # of the images
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One silo: where it lives and which of the drawn centers is its own."""

    name: str
    center: int
    node: Node
    folder: Path
    """Its own volumes: `data` (drawn images, shared by all in these tests) and `state`."""

    @property
    def namespace(self) -> str:
        """Its namespace in its cluster."""
        return f"hospital-{self.name}"

    @property
    def cluster(self) -> ControlPlane:
        """Its API server."""
        return self.node.cluster

    def install(self, images: Path, *, endpoint: str, subjects: list[dict[str, str]]) -> None:
        """What the hospital's IT does: a namespace, the store's credentials, volumes, `helm install`."""
        make_namespace(self.cluster, self.namespace)
        make_secret(self.cluster, self.namespace, "fedhelp-store", CREDENTIALS)
        make_volume(self.cluster, self.namespace, "images", images)
        state = self.folder / "state"
        state.mkdir(parents=True, exist_ok=True)
        os.chown(state, _USER, _USER)
        make_volume(self.cluster, self.namespace, "fedhelp-state", state, claim=False)
        self.helm("install", "fedhelp-silo", str(REPOSITORY / "helm" / "fedhelp-silo"), values=self.values(endpoint, subjects))

    def values(self, endpoint: str, subjects: list[dict[str, str]]) -> dict[str, Any]:
        """The hospital's values file."""
        return {
            "silo": {"name": self.name}, "image": {"repository": f"{IMAGES_REPOSITORY}/silo", "tag": SILO_TAG},
            "data": {"claimName": "images", "layout": "fed-isic2019", "center": self.center, "validationFraction": 0.0},
            "state": {"size": "1Gi"},
            "store": {"url": f"s3://{BUCKET}/melanoma", "endpointUrl": endpoint, "network": [
                {"cidr": f"{self.node.gateway}/32", "ports": [int(endpoint.rsplit(":", 1)[1])]}]},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "3Gi"}},
            "hub": {"subjects": subjects} if subjects else {"serviceAccount": {"create": True}},
        }

    def upgrade(self, **changes: Any) -> None:
        """What the hospital's IT does to change its values: those that it installed with, and `changes`."""
        self.helm("upgrade", "fedhelp-silo", str(REPOSITORY / "helm" / "fedhelp-silo"), "--reuse-values", values=changes)

    def helm(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        """Run helm in the hospital's namespace."""
        return helm(self.cluster, self.namespace, *arguments, values=values)

    def jobs(self, selector: str = "fedhelp.io/silo") -> list[dict[str, Any]]:
        """The Jobs that the hub started here."""
        return list(json.loads(self.cluster.kubectl("-n", self.namespace, "get", "jobs", "-l", selector, "-o", "json"))["items"])


def helm(cluster: ControlPlane, namespace: str, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
    """Run helm as the cluster's administrator; RuntimeError with its words when it fails."""
    command = [str(binary("helm")), "--kubeconfig", str(cluster.kubeconfig()), "--namespace", namespace, *arguments]
    text = None if values is None else yaml.safe_dump(dict(values))
    done = subprocess.run([*command, *(["--values", "-"] if text else [])], input=text, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def make_namespace(cluster: ControlPlane, name: str) -> None:
    """A namespace that enforces the restricted Pod Security level."""
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})


def make_secret(cluster: ControlPlane, namespace: str, name: str, content: Mapping[str, str]) -> None:
    """A Secret."""
    cluster.request("POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": name}, "stringData": dict(content)})


def make_volume(cluster: ControlPlane, namespace: str, name: str, folder: Path, *, claim: bool = True) -> None:
    """A volume over `folder`, kept for the claim `name` of `namespace`; with `claim`, that claim too."""
    size = {"storage": "1Gi"}
    cluster.request("POST", "/api/v1/persistentvolumes", {
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {"capacity": size, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "hostPath": {"path": str(folder)},
                 "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": namespace, "name": name}}})
    if claim:
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", {
            "metadata": {"name": name}, "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": size}, "storageClassName": ""}})


def federation_document(hospitals: list[Hospital], *, endpoint: str, tracking: str, contexts: Mapping[str, str]) -> dict[str, Any]:
    """federation.yaml of the hub: the drawn melanoma task, small enough for two cores. `contexts`: hospital -> kubeconfig context elsewhere."""
    return {
        "version": 1, "name": "e2e", "task": {"name": "melanoma", "image_size": 32},
        "algorithm": {
            "method": "fedhelp", "rounds": 3, "batch_size": 4, "public_batch_size": 8, "proxy_model": "resnet8", "large_model": "resnet20",
            "large_silos": 1},
        "protocol": {"min_silos": 2, "round_deadline": 300.0, "lease": 120.0}, "runtime": {"seed": 1, "threads": 1, "device": "cpu"},
        "public_set": {"images": "/public", "teachers": [
            {"name": "drawn", "kind": "mlflow", "uri": "/public/teacher", "classes": len(PUBLIC_LESIONS)}]},
        "store": {"url": f"s3://{BUCKET}/melanoma", "endpoint_url": endpoint}, "tracking": {"uri": tracking},
        "silos": [{"name": hospital.name, "dispatch": {
            "kind": "kubernetes", "namespace": hospital.namespace, **({"context": contexts[hospital.name]} if hospital.name in contexts else {})}}
            for hospital in hospitals],
    }


def endpoint_of(port: int) -> str:
    """The address under which pods reach a server of this machine."""
    return f"http://{HOST_NAME}:{port}"
