"""Charts rendered by a real helm, as parsed objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import binary

CHARTS = Path(__file__).resolve().parents[2] / "helm"
SILO, HUB = CHARTS / "fedhelp-silo", CHARTS / "fedhelp-hub"
OPTIONAL_APIS = (
    "monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule",
    "serving.kserve.io/v1beta1/InferenceService",
    "pipelines.kubeflow.org/v2beta1/Pipeline", "pipelines.kubeflow.org/v2beta1/PipelineVersion",
)
Object = dict[str, Any]


class Rendered(list[Object]):
    """The objects of one rendering, in helm's order."""

    def one(self, kind: str, name: str | None = None) -> Object:
        """The only object of this kind (and name)."""
        found = [o for o in self if o["kind"] == kind and name in (None, o["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} of {kind} {name}, among {[(o['kind'], o['metadata']['name']) for o in self]}"
        return found[0]

    def has(self, kind: str, name: str | None = None) -> bool:
        """Whether there is such an object."""
        return any(o["kind"] == kind and name in (None, o["metadata"]["name"]) for o in self)


def helm(*arguments: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; its exit code and words are the caller's to judge."""
    return subprocess.run([binary("helm"), *map(str, arguments)], input=input, capture_output=True, text=True, timeout=120)


def variants(chart: Path) -> list[Path]:
    """The chart's ci/*-values.yaml."""
    found = sorted((chart / "ci").glob("*-values.yaml"))
    assert found
    return found


@pytest.fixture
def render() -> Callable[..., Rendered]:
    """render(chart, variant, {"gpu": {"count": 0}}, apis=()) -> objects; the dict is laid over the variant's values."""

    def rendered(chart: Path, variant: str, values: Object | None = None, *, apis: tuple[str, ...] = OPTIONAL_APIS) -> Rendered:
        done = template(chart, variant, json.dumps(values or {}), apis)
        assert done.returncode == 0, done.stderr
        return Rendered(o for o in yaml.safe_load_all(done.stdout) if o)

    return rendered


@pytest.fixture
def refusal() -> Callable[..., str]:
    """refusal(chart, variant, values) -> what helm says when it refuses them."""

    def refused(chart: Path, variant: str, values: Object, *, apis: tuple[str, ...] = OPTIONAL_APIS) -> str:
        done = template(chart, variant, json.dumps(values), apis)
        assert done.returncode != 0, "helm took these values"
        return done.stderr

    return refused


@cache
def template(chart: Path, variant: str, values: str, apis: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """`helm template` of a variant with `values` (JSON) laid over it; the same again costs nothing."""
    return helm(
        "template", "release", chart, "--namespace", "hospital", "--values", chart / "ci" / f"{variant}-values.yaml", "--values", "-",
        *(word for api in apis for word in ("--api-versions", api)), input=values)
