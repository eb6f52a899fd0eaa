"""What others rely on of a compiled pipeline: its form, its nodes and what they are called, and what of the cluster they are given.

    python -m tests.pipelines.contract

writes tests/pipelines/contracts/*.yaml anew, where that was changed on purpose. No image, no code and no order of YAML is in it,
so that kfp's own versions make no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("contracts")
SILOS = ("charite", "nord")


def contract_of(text: str) -> dict[str, Any]:
    """The contract of a compiled pipeline's YAML."""
    spec, platform = yaml.safe_load_all(text)
    pages = {"root": spec["root"], **{name: part for name, part in spec["components"].items() if "dag" in part}}
    return {
        "form": {name: _field(field) for name, field in spec["root"]["inputDefinitions"]["parameters"].items()},
        "pages": {_title(spec, name): _nodes(spec, page["dag"]["tasks"]) for name, page in pages.items()},
        "given": {name: _given(settings) for name, settings in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()},
    }


def _field(field: Mapping[str, Any]) -> dict[str, Any]:
    return {key: field[key] for key in ("parameterType", "defaultValue", "literals") if key in field}


def _title(spec: Mapping[str, Any], page: str) -> str:
    """What the node is called that a page lies behind."""
    for component in (spec["root"], *spec["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            if task["componentRef"]["name"] == page:
                return str(task["taskInfo"]["name"])
    return "the run"


def _nodes(spec: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    nodes = {}
    for name, task in tasks.items():
        component = spec["components"][task["componentRef"]["name"]]
        outputs = component.get("outputDefinitions", {})
        found = {
            "task": name, "after": [tasks[other]["taskInfo"]["name"] for other in task.get("dependentTasks", [])],
            "only if": task.get("triggerPolicy", {}).get("condition"), "executor": component.get("executorLabel"),
            "inputs": sorted(component.get("inputDefinitions", {}).get("parameters", {})) if "executorLabel" in component else None,
            "outputs": sorted(outputs.get("parameters", {})), "artifacts": sorted(outputs.get("artifacts", {}))}
        nodes[task["taskInfo"]["name"]] = {key: value for key, value in found.items() if value}
    return nodes


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Volumes and environment, by the names of ConfigMaps, Secrets and claims."""
    found: dict[str, Any] = {}
    for kind, items in settings.items():
        for item in items:
            name = item.get("configMapName") or item.get("secretName") or item.get("constant")
            what = item["mountPath"] if "mountPath" in item else [pair["envVar"] for pair in item["keyToEnv"]]
            found[f"{kind} {name}"] = what
    return found


def main() -> None:
    """Write the contracts."""
    from fedhelp_pipelines.compile import compiled
    from fedhelp_pipelines.graphs import PIPELINES

    FOLDER.mkdir(exist_ok=True)
    for name in PIPELINES:
        text = yaml.safe_dump(contract_of(compiled(name, silos=SILOS)), sort_keys=True, width=140)
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
