"""Pipelines as YAML that Kubeflow accepts: kfp's compiler, menus for enumerations, a federation's own settings as defaults.

Called by `fedhelp compile` and `fedhelp submit`. Imports kfp, PyYAML and the standard library only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from fedhelp_components.check.form import LITERALS
from fedhelp_pipelines.graphs import PIPELINES


def compiled(name: str, defaults: Mapping[str, Any] | None = None) -> str:
    """Pipeline `name` as YAML text; `defaults` replace the form's by parameter name.

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
    return yaml.safe_dump_all([spec, *platform], sort_keys=False, width=160)
