"""The parts of the charts that are made from other files of this project.

    make charts                        write them
    python helm/generate.py --check    only say which are not in step (exit code 1)

The table of values in each README comes from the `# --` comments of values.yaml; the hub's pipelines from
fedhelp_pipelines.graphs; what their form shows of a federation from the form's fields; the schema of the
hub's `federation` value from fedhelp_core.config.federation. tests/helm/test_generated.py holds them in step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CHARTS = ("fedhelp-hub", "fedhelp-silo")
START, END = "<!-- values: made by helm/generate.py -->", "<!-- end of values -->"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):(?P<rest>.*)$")
_DOC = re.compile(r"^ *# -- (?P<text>.*)$")
_MORE = re.compile(r"^ *# (?P<text>.*)$")


@dataclass(frozen=True)
class Value:
    """One documented value: dotted key, what it means, its default."""

    key: str
    description: str
    default: Any


def values_of(text: str) -> Iterator[Value]:
    """The documented values of a values.yaml, in its order.

    Raises:
        ValueError: a value that no `# --` comment explains, its own or one above it.
    """
    defaults = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    explained: set[str] = set()
    for line in text.splitlines():
        if match := _DOC.match(line):
            comment = [match["text"]]
        elif comment and (match := _MORE.match(line)):
            comment.append(match["text"])
        elif match := _KEY.match(line):
            indent = len(match["indent"])
            path = [*((i, k) for i, k in path if i < indent), (indent, match["key"])]
            key = ".".join(k for _, k in path)
            if any(key.startswith(f"{above}.") for above in explained):
                continue
            if comment:
                explained.add(key)
                yield Value(key, " ".join(comment), _at(defaults, key))
            elif not isinstance(_at(defaults, key), dict) or not _at(defaults, key):
                raise ValueError(f"{key}: has no `# --` comment in values.yaml; say what it means")
            comment = []


def table(values: Iterator[Value]) -> str:
    """A Markdown table of values."""
    rows = [f"| `{v.key}` | {_shown(v.default)} | {v.description.replace('|', chr(92) + '|')} |" for v in values]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows])


def readme(chart: str) -> str:
    """The README of `chart` with its table of values."""
    readme = (HERE / chart / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    values = (HERE / chart / "values.yaml").read_text(encoding="utf-8")
    return f"{before}{START}\n{table(values_of(values))}\n{END}{after}"


def _at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document[part]
    return document


def _shown(default: Any) -> str:
    return "" if default == "" else f"`{json.dumps(default)}`"


def pipelines() -> dict[str, str]:
    """File name -> compiled pipeline, as the hub's chart carries them. The image is the product's own name, whatever the environment says.

    Each has a task that stands for the federation's silos: the chart's template puts one for each in its place.
    """
    for variable in ("FEDHELP_HUB_IMAGE", "FEDHELP_SILO_IMAGE"):
        os.environ.pop(variable, None)
    from fedhelp_pipelines.compile import compiled
    from fedhelp_pipelines.graphs import PIPELINES, SILO

    return {f"{name}.yaml": compiled(name, silos=[SILO]) for name in PIPELINES}


def form() -> str:
    """Where in the hub's `federation` value each parameter of the run form is found."""
    from fedhelp_components.check.form import FIELDS

    return yaml.safe_dump(FIELDS, sort_keys=False)


def hub_schema() -> str:
    """The hub's values.schema.json with the product's own schema of a federation in it."""
    from fedhelp_core.config.federation import Federation

    schema = json.loads((HERE / "fedhelp-hub" / "values.schema.json").read_text(encoding="utf-8"))
    federation = _on_one_line(Federation.model_json_schema())
    federation["$defs"]["DispatchConfig"]["properties"]["job_template"]["anyOf"].append({"type": "string"})  # a file's content, by --set-file
    schema["$defs"] = {**federation.pop("$defs"), "Federation": federation}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _on_one_line(node: Any) -> Any:
    """A schema whose descriptions, which are docstrings, have no line breaks."""
    if isinstance(node, dict):
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _on_one_line(value)
            for key, value in node.items()}
    return [_on_one_line(value) for value in node] if isinstance(node, list) else node


def generated() -> dict[Path, str]:
    """Every made file, as it should be."""
    files = {HERE / chart / "README.md": readme(chart) for chart in CHARTS}
    files[HERE / "fedhelp-hub" / "values.schema.json"] = hub_schema()
    files[HERE / "fedhelp-hub" / "files" / "form.yaml"] = form()
    files |= {HERE / "fedhelp-hub" / "files" / "pipelines" / name: text for name, text in pipelines().items()}
    return files


def stale() -> list[Path]:
    """The made files that are not as they should be."""
    return [path for path, text in generated().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="Make the charts' READMEs, pipelines and schema from the files that they repeat.")
    parser.add_argument("--check", action="store_true", help="only say which are not in step")
    if parser.parse_args().check:
        for path in stale():
            print(f"{path.relative_to(HERE.parent)}: not in step; run make charts", file=sys.stderr)
        return int(bool(stale()))
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
