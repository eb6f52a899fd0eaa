"""Pipelines as YAML that Kubeflow accepts: kfp's compiler, menus for enumerations, a federation's own settings and silos.

Called by `fedhelp compile`, `fedhelp register`, `fedhelp submit` and helm/generate.py. Imports kfp, PyYAML and the standard library only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from fedhelp_components.check.form import LITERALS
from fedhelp_pipelines.graphs import NODES, PIPELINES, SILO

MOST_NODES = 50
"""Silos that get a node of their own. Above that all are in the loop: nobody reads such a graph, and its Workflow has to fit into etcd."""


def compiled(name: str, defaults: Mapping[str, Any] | None = None, silos: Sequence[str] = ()) -> str:
    """Pipeline `name` as YAML text; `defaults` replace the form's by parameter name, and each of `silos` gets a node of its own.

    Raises:
        KeyError: `name` is not one of PIPELINES, or a default is not a parameter of the form.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(PIPELINES[name], str(path))
        spec, *platform = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    form = spec["root"]["inputDefinitions"]["parameters"]
    for parameter, values in LITERALS.items():
        form[parameter]["literals"] = values
    for parameter, value in (defaults or {}).items():
        form[parameter]["defaultValue"] = value
    for key, task in _tasks(spec):
        task["taskInfo"]["name"] = NODES[name].get(key, key)
    spec["pipelineInfo"]["description"] += "\n\n" + _table(form)
    _give_nodes(spec["root"]["dag"]["tasks"], silos if len(silos) <= MOST_NODES else ())
    return yaml.safe_dump_all([spec, *platform], sort_keys=False, width=160)


def _tasks(spec: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and task of every DAG of the pipeline."""
    for component in (spec["root"], *spec["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).items()


def _table(form: Mapping[str, Any]) -> str:
    """The form's fields as Markdown, as the form sorts them: it shows no descriptions itself."""
    rows = [f"| {name} | {field['description']} |" for name, field in sorted(form.items())]
    return "\n".join(["| field | meaning |", "| --- | --- |", *rows, "", "Every other setting is the file's."])


def _give_nodes(tasks: dict[str, Any], silos: Sequence[str]) -> None:
    """A task per silo in place of the one that stands for all, as the hub's chart does it; check leaves the others to the loop."""
    pattern = tasks.pop("silo-training", None)
    silos = silos if pattern is not None else ()
    tasks["check"]["inputs"]["parameters"]["nodes"] = {"runtimeValue": {"constant": list(silos)}}
    if pattern is not None:
        tasks |= {f"train-{silo}": json.loads(json.dumps(pattern).replace(SILO, silo)) for silo in silos}
