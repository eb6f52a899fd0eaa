"""YAML files of configurations: read strictly, paths in them made absolute. Called by federation.py and silo.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fedhelp_core.budget import MOST_NESTING, MOST_YAML_BYTES, MOST_YAML_NODES, foreign, regular_bytes
from fedhelp_core.errors import ConfigError
from fedhelp_core.printable import printable

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SHOWN = 200  # characters of what YAML says
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:")  # s3://bucket, models:/name@alias, runs:/id/model


def read_yaml(path: Path) -> Any:
    """The mapping in a YAML file.

    Raises:
        ConfigError: there is no such file, it is no YAML, it is no mapping, or a field in it is given twice.
    """
    def unread(why: str) -> ConfigError:
        return ConfigError(f"{path}: cannot be read ({why}); check its permissions and that it is UTF-8 text")

    try:
        text = regular_bytes(path, MOST_YAML_BYTES, unread).decode("utf-8")
    except FileNotFoundError as e:
        raise ConfigError(
            f"{path}: no such file; give the path of a YAML file (`fedhelp data ingest` writes silo.yaml files for real data,"
            " `fedhelp data phantom TASK FOLDER` a drawn federation)") from e
    except (OSError, UnicodeDecodeError) as e:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give the path of a YAML file inside it") from e
        raise unread(str(e)) from e
    return mapping_in(text, str(path))


def mapping_in(text: str, source: str) -> dict[str, Any]:
    """The mapping that YAML `text` is; `source` names it in messages.

    Raises:
        ConfigError: it is no YAML, too large with all its aliases written out, no mapping, or a field in it is given twice.
    """
    def wrong(why: str) -> ConfigError:
        return ConfigError(f"{source}: is not valid YAML: {why}")

    if len(text) > MOST_YAML_BYTES:
        raise wrong(f"has more than {MOST_YAML_BYTES:,} bytes")
    try:
        with foreign(wrong, yaml.YAMLError):
            document = yaml.load(text, _Loader)
    except _TooDeep as e:
        raise ConfigError(f"{source}: is nested deeper than any configuration; give a file as `fedhelp data phantom` writes it") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}: is not valid YAML{where}: {printable(getattr(e, 'problem', e), _SHOWN)}") from e
    require_texts(document, source=source)
    if document is None:
        raise ConfigError(f"{source}: is empty; expected a mapping of fields")
    if not isinstance(document, dict):
        raise ConfigError(f"{source}: expected a mapping of fields, got {type(document).__name__}")
    return document


def require_texts(document: Any, *, source: str) -> None:
    """Nothing where every text of `document` can be a file's name and be printed: YAML and JSON can escape characters that cannot.

    Raises:
        ConfigError: a text holds such a character (every one listed).
    """
    wrong = [f"{source}: {field}: holds {character!r}, which no name of a file and no message can hold; remove it"
             for field, text in _texts(document, "") for character in _NO_TEXT.findall(text)[:1]]
    if wrong:
        raise ConfigError(wrong)


def _texts(node: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield field, node
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _texts(inner, f"{field}.{key}" if field else str(key))


def with_absolute_paths(document: Any, base: Path, dotted_paths: tuple[str, ...]) -> Any:
    """`document` with the values at `dotted_paths` made absolute against `base`, where they are relative paths."""
    return with_changed(
        document, dotted_paths,
        lambda text: text if not text.strip() or _SCHEME.match(text) or Path(text).is_absolute() else str((base / text).resolve()))


def template_in(path: Path, *, source: str) -> dict[str, Any]:
    """The part of an exported CronJob that a Job is made of: what the server adds (status, uid) says nothing about it.

    Raises:
        ConfigError: `path`, which `source` names, is no such file.
    """
    asked = "kubectl get cronjob fedhelp-worker -o yaml in the silo's namespace"
    if not path.is_file():
        raise ConfigError(f"{source}: dispatch.job_template: no file {path}; give the hospital's exported template ({asked})")
    exported = read_yaml(path)
    spec = exported.get("spec")
    template = spec.get("jobTemplate") if isinstance(spec, dict) else None
    if exported.get("kind") != "CronJob" or not isinstance(template, dict):
        raise ConfigError(f"{source}: dispatch.job_template: {path} holds {exported.get('kind')!r}, expected the hospital's CronJob ({asked})")
    return {"kind": "CronJob", "spec": {"jobTemplate": template}}


def with_changed(document: Any, dotted_paths: tuple[str, ...], change: Callable[[str], Any]) -> Any:
    """`document` with the texts at `dotted_paths` replaced by what `change` makes of them."""

    def visit(node: Any, keys: list[str]) -> Any:
        if not keys:
            return change(node) if isinstance(node, str) else node
        if keys[0] == "*" and isinstance(node, list):
            return [visit(item, keys[1:]) for item in node]
        if isinstance(node, dict) and keys[0] in node:
            return {**node, keys[0]: visit(node[keys[0]], keys[1:])}
        return node

    for dotted in dotted_paths:
        document = visit(document, dotted.split("."))
    return document


class _TooDeep(yaml.YAMLError):
    """Lists and mappings nest deeper than the budget."""


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML would keep the last one without a word, and a value that is not what it looks like.

    A few lines of aliases can stand for a billion nodes, and merge keys copy them; so nodes are counted as if written out, before any is made.
    Levels are counted while they are read: recursion that Python ends first has ended whole processes, where a library had raised Python's limit.
    """

    _levels = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self._levels == MOST_NESTING:
            raise _TooDeep
        self._levels += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _require_bounded(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, ArithmeticError) as e:  # YAML took it for a date or a number, which it is not
            kind = node.tag.rpartition(":")[2]
            shown = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.MarkedYAMLError(problem=f"{shown!r} is no {kind}; put it in quotes if it is a text", problem_mark=node.start_mark) from e

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"field {key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _require_bounded(root: yaml.Node) -> None:
    """YAMLError where `root` holds itself, nests too deep, or has too many nodes once every alias is written out."""
    known: dict[int, tuple[int, int]] = {}
    inside: set[int] = set()

    def extent(node: yaml.Node) -> tuple[int, int]:
        """Nodes and levels."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        if id(node) in inside:
            raise yaml.MarkedYAMLError(problem="an alias stands for what it is in", problem_mark=node.start_mark)
        if id(node) not in known:
            inside.add(id(node))
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            found = [extent(part) for part in parts]
            inside.discard(id(node))
            nodes, levels = 1 + sum(nodes for nodes, _ in found), 1 + max((levels for _, levels in found), default=0)
            if nodes > MOST_YAML_NODES or levels > MOST_NESTING:
                said = f"with its aliases more than {MOST_YAML_NODES:,} values, or {MOST_NESTING} levels"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
            known[id(node)] = nodes, levels
        return known[id(node)]

    extent(root)
