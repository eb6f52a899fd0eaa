"""docs/configuration.md: every field of federation.yaml and silo.yaml, from the schema and its descriptions.

    make charts                              write it, and the charts' generated parts
    python docs/configuration.py --check     only say whether it is in step (exit code 1)
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedhelp_core.config.federation import Federation
from fedhelp_core.config.model import ModelConfig
from fedhelp_core.config.silo import SiloConfig

PAGE = Path(__file__).resolve().parent / "configuration.md"
_HEAD = """<!-- made by docs/configuration.py; `make charts` writes it anew -->
# Configuration

A federation is one file of the hub, `federation.yaml`. Each hospital has a file of its own, `silo.yaml`, which never leaves it.
`fedhelp check FEDERATION` reads both and says what is wrong, first in the file, then in models and hospitals.
`--set algorithm.rounds=20` changes a field for one command.

- "Paper" is [arXiv 2412.19654](algorithm.md). Where a default is the paper's, its meaning says so.
- Relative paths are taken from the file's own folder.
- An unknown field is refused, with the nearest right name.
- [examples/](../examples/README.md) has a federation for each task. `fedhelp data ingest` writes the `silo.yaml` files.
"""
_BOUNDS = ((annotated_types.Ge, "ge", "at least {}"), (annotated_types.Gt, "gt", "above {}"),
           (annotated_types.Le, "le", "at most {}"), (annotated_types.Lt, "lt", "below {}"))
_FIRST = ("version", "layout")  # of a section; the others keep the schema's order
_ALTERNATIVES = {"layout": "Which of the alternatives this is."}
_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_file("federation.yaml", Federation), *_file("silo.yaml", SiloConfig)])


def _file(name: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {name}\n"
    yield from _sections(model, "")


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """A table of the fields of `model`, then the tables of what lies in them."""
    if path:
        yield f"### `{path}`\n"
    if path and model.__doc__:
        yield f"{_cell(_summary(model))}\n"
    inside = []
    lines = ["| field | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in sorted(model.model_fields.items(), key=lambda one: one[0] not in _FIRST):
        found = _models(field.annotation)
        inside += [(_path(path, name, one, field.annotation, len(found)), one) for one in found]
        meaning = field.description or _ALTERNATIVES.get(name) or " ".join(map(_summary, found[:1]))
        lines.append(f"| `{name}` | {_value(field)} | {_default(field)} | {_cell(meaning)} |")
    yield "\n".join(lines) + "\n"
    for where, one in inside:
        yield from _sections(one, where)


def _path(path: str, name: str, model: type[BaseModel], annotation: Any, alternatives: int) -> str:
    """Such as `silos[].dispatch`, and which of several alternatives: `data (layout: datalist)`."""
    listed = "[]" if _is_list(annotation) else ""
    which = ""
    for discriminator in ("layout", "kind"):
        if alternatives > 1 and discriminator in model.model_fields:
            which = f" ({discriminator}: {typing.get_args(model.model_fields[discriminator].annotation)[0]})"
    return f"{path}.{name}{listed}{which}".lstrip(".")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(one for inner in typing.get_args(annotation) for one in _models(inner)))


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list) or any(
        _is_list(inner) for inner in typing.get_args(annotation) if inner is not type(None))


def _value(field: FieldInfo) -> str:
    bounds = [text.format(_number(getattr(one, name))) for kind, name, text in _BOUNDS for one in field.metadata if isinstance(one, kind)]
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(one) if not isinstance(one, str) else one}`" for one in inner)
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(_type(one) for one in inner if one is not type(None))
        return " or ".join([*kinds, *(["null"] if type(None) in inner else [])])
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _PLAIN.get(annotation, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True, validated_data={}) if field.default_factory else field.default
    if isinstance(default, ModelConfig):
        return f"`{json.dumps(str(default))}`"
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    if isinstance(default, tuple):
        return f"`{json.dumps([one if isinstance(one, int | float | str) else str(one) for one in default])}`" if default else "none"
    if isinstance(default, int | float) and not isinstance(default, bool):
        return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    return f"`{json.dumps(default if isinstance(default, str | bool | None) else str(default))}`"


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _summary(model: type[BaseModel]) -> str:
    """Its docstring's first paragraph."""
    return _one_line((model.__doc__ or "").partition("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    linked = re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", re.sub(r"docs/(decisions/(\d{4}))(?![-\w])", _decision, _one_line(text)))
    return re.sub(r"'([\w.:*-]+)'", r"`\1`", linked).replace("|", "\\|").replace("<", "&lt;")


def _decision(match: re.Match[str]) -> str:
    """`docs/decisions/0020` as a link to the page of that number."""
    (page,) = PAGE.parent.glob(f"{match[1]}-*.md")
    return f"[decision {match[2]}](decisions/{page.name})"


def main() -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == made:
        return 0
    print(f"{PAGE}: not in step with the schema; run: make charts", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
