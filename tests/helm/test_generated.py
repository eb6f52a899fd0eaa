"""What helm/generate.py makes is in step with what it is made from."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest

from tests.helm.conftest import CHARTS, HUB, SILO


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHARTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_readmes_pipelines_and_schema_are_in_step(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHELP_HUB_IMAGE", "made-elsewhere:1")

    assert [str(path) for path in generate.stale()] == [], "run: make charts"


@pytest.mark.parametrize("chart", [SILO, HUB], ids=["silo", "hub"])
def test_every_value_is_explained(chart: object, generate: ModuleType) -> None:
    values = list(generate.values_of((chart / "values.yaml").read_text()))  # type: ignore[operator]

    assert values
    assert [value.key for value in values if len(value.description) < 4 or not value.description.endswith(".")] == []


def test_a_value_without_an_explanation_is_found(generate: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"gpu\.count"):
        list(generate.values_of("gpu:\n  # -- Which.\n  resource: x\n  count: 1\n"))


def test_a_comment_explains_everything_below_it(generate: ModuleType) -> None:
    values = list(generate.values_of("# -- CPU and memory,\n# of the worker.\nresources:\n  requests: {cpu: 1}\n"))

    assert [(v.key, v.description, v.default) for v in values] == [("resources", "CPU and memory, of the worker.", {"requests": {"cpu": 1}})]


def test_the_hubs_schema_is_closed() -> None:
    schema = json.loads((HUB / "values.schema.json").read_text())

    def closed(described: dict[str, object], path: str) -> None:
        if "properties" in described:
            assert described["additionalProperties"] is False, path
            for key, inner in described["properties"].items():  # type: ignore[attr-defined]
                closed(inner, f"{path}.{key}")

    closed(schema, "values")
    for name, definition in schema["$defs"].items():
        closed(definition, name)
