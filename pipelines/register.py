"""Put pipelines into Kubeflow, where people find them in the UI, and take them out again. Called by `fedhelp register`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import V2beta1Pipeline

from fedhelp_pipelines.client import kubeflow_client, pipelines_named
from fedhelp_pipelines.compile import compiled
from fedhelp_pipelines.graphs import PIPELINES

_PAGE = 100


def own_packages(folder: Path, defaults: Mapping[str, Any], silos: Sequence[str]) -> list[Path]:
    """This product's pipelines, compiled into `folder` with a form that opens as `defaults` say and a node for each of `silos`."""
    paths = [folder / f"{name}.yaml" for name in PIPELINES]
    for path in paths:
        path.write_text(compiled(path.stem, defaults, silos), encoding="utf-8")
    return paths


@dataclass(frozen=True)
class Registered:
    """One pipeline in Kubeflow."""

    pipeline: str
    version: str
    new: bool
    """False: a version with this content was there already."""
    described: bool
    """False: Kubeflow's list shows another description of the pipeline, or none: it keeps the first, and changes a name or tags alone."""


class Registry:
    """The pipelines of one Kubeflow; `token_path`: the token that a multi-user one asks for."""

    def __init__(self, endpoint: str, namespace: str | None, *, token_path: str | None = None) -> None:
        credentials = ServiceAccountTokenVolumeCredentials(path=token_path) if token_path else None
        self._client = kubeflow_client(endpoint, namespace, credentials=credentials)
        self._namespace = namespace

    @property
    def server_version(self) -> str:
        """As the server names it; blank where it does not."""
        return self._client.server_version

    def register(self, package: Path, name: str) -> Registered:
        """Upload the compiled pipeline at `package` as a version of pipeline `name`, unless its content is there: the version is named by it."""
        said = str(next(iter(yaml.safe_load_all(package.read_text(encoding="utf-8"))))["pipelineInfo"].get("description", ""))
        version = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
        line = said.partition("\n\n")[0]
        found = self._find(name) or self._create(name, line)
        pipeline, described = str(found.pipeline_id), (found.description or "") == line
        new = version not in self._versions(pipeline)
        if new:
            self._client.upload_pipeline_version(str(package), pipeline_version_name=version, pipeline_id=pipeline, description=said)
        return Registered(name, version, new, described)

    def remove(self, name: str) -> bool:
        """Delete pipeline `name` with its versions; False if there is none. Runs that were started stay."""
        found = self._find(name)
        if found is None:
            return False
        pipeline = str(found.pipeline_id)
        for version in self._versions(pipeline).values():
            self._client.delete_pipeline_version(pipeline, version)
        self._client.delete_pipeline(pipeline)
        return True

    def _find(self, name: str) -> V2beta1Pipeline | None:
        return next(iter(pipelines_named(self._client, name, self._namespace)), None)

    def _create(self, name: str, description: str) -> V2beta1Pipeline:
        """An empty pipeline; the UI's list shows `description` on one line.

        kfp's own upload_pipeline would add a first version called like the pipeline, whatever its content.
        """
        pipeline = V2beta1Pipeline(display_name=name, description=description, namespace=self._namespace)
        return self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=pipeline)

    def _versions(self, pipeline: str) -> dict[str, str]:
        """Name -> id of all versions."""
        found: dict[str, str] = {}
        token = ""
        while True:
            page = self._client.list_pipeline_versions(pipeline, page_token=token, page_size=_PAGE)
            found |= {version.display_name: version.pipeline_version_id for version in page.pipeline_versions or []}
            token = page.next_page_token or ""
            if not token:
                return found
