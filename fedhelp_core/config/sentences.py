"""What is wrong with a configuration, in plain sentences that name field, expected and got. Pure; called by section.py with pydantic's records."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from fedhelp_core.printable import nearest

_NAME = "lower-case letters, digits and '-' expected, starting and ending with a letter or digit, at most {} long"
SHORT_NAME, LONG_NAME = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$", r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
SHA256, PRINTABLE, VERSION = r"^[0-9a-f]{64}$", r"^[ -~]+$", r"^[0-9]{1,18}$"
_OF_PATTERN = {
    SHORT_NAME: _NAME.format(40), LONG_NAME: _NAME.format(63), SHA256: "a sha256 expected, 64 lower-case hexadecimal digits",
    PRINTABLE: "plain text expected, without accents or line breaks", VERSION: "the number of a version expected, in quotes"}
"""What each pattern of a text is in words."""
WORD, MORE = "[word]", "[more]"
"""Tags of a union's members, a word or something longer: the fault of the one that was meant is told, and no tag is part of a field's path."""


def sentences(model: type[BaseModel], error: Any, document: Any) -> list[str]:
    """Pydantic's error record as sentences; `document` is what was validated, whose silos and teachers are named where the error is theirs."""
    names, around = _walk(model, error["loc"])
    owner = _owner(document, names)
    return [f"{field}{owner}{colon}{said}" for field, colon, said in (line.partition(": ") for line in _plain(model, error, names, around))]


def _plain(model: type[BaseModel], error: Any, names: list[str], around: list[type[BaseModel]]) -> list[str]:
    field = ".".join(names)
    got = error.get("input")
    kind = error["type"]
    if kind == "extra_forbidden":
        near = _nearest_field(model, error["loc"])
        hint = f"; did you mean {near!r}?" if near else "; remove it"
        return [f"{field}: unknown field{hint}"]
    if kind == "missing":
        return [f"{field}: missing; this field has no default"]
    if kind == "too_short" and len(got or ()) >= error["ctx"]["min_length"]:
        return []  # pydantic counts valid items only: what is wrong with the others is said of each
    if kind == "value_error":
        prefix = f"{field}." if field and not field.startswith("silos") else (f"{field}: " if field else "")
        return [f"{prefix}{line}" for line in str(error["ctx"]["error"]).splitlines()]
    if kind == "string_pattern_mismatch":
        return [f"{field}: {_OF_PATTERN[error['ctx']['pattern']]}, got {got!r}"]
    if kind in ("literal_error", "union_tag_invalid"):
        expected, got = (error["ctx"]["expected"], got) if kind == "literal_error" else (error["ctx"]["expected_tags"], error["ctx"]["tag"])
        near = nearest(str(got), re.findall(r"'([^']+)'", str(expected)))
        hint = f"; did you mean {near!r}?" if near else ""
        choice = f"one of {expected}" if "," in str(expected) or " or " in str(expected) else str(expected)
        return [f"{field}{'' if kind == 'literal_error' else '.layout'}: {choice} expected, got {got!r}{hint}"]
    if kind == "union_tag_not_found":
        known = [repr(layout) for layouts in around for layout in get_args(layouts.model_fields["layout"].annotation)]
        return [f"{field}.layout: missing; one of {', '.join(known)} expected"]
    said = re.sub(r" or instance of \w+| or object to extract fields from| for <class '[\w.]+'>| after validation, not \d+", "", error["msg"])
    said = said.replace("Tuple", "List").replace("tuple", "list").replace("dictionary", "mapping")  # YAML's words
    return [f"{field}: {said[0].lower()}{said[1:]}, got {_short(got)}"]


def _owner(document: Any, names: list[str]) -> str:
    """The name of the list's item that a path leads through, such as " ('berlin')" for silos.7.dispatch; '' where there is none."""
    found, node = "", document
    for depth, part in enumerate(names):
        inside = names[depth + 1:]
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
            name = node.get("name") if isinstance(node, dict) else None
            found = f" ({name!r})" if isinstance(name, str) and inside != ["name"] else ""
        elif isinstance(node, dict):
            node = node.get(part)
        else:
            break
    return found


def _walk(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """The names along pydantic's `location` without the tags of its unions, and the models that lie there."""
    names: list[str] = []
    current: list[type[BaseModel]] = [model]
    for part in location:
        if part in (WORD, MORE):
            continue
        if len(current) > 1:  # a union: this part says which of it, and is no field
            current = [m for m in current if any(part in getattr(f.annotation, "__args__", ()) for f in m.model_fields.values())]
            continue
        names.append(str(part))
        if not isinstance(part, int):
            current = [m for c in current if part in c.model_fields for m in models_in(c.model_fields[part].annotation)]
    return names, current


def _nearest_field(model: type[BaseModel], location: tuple[Any, ...]) -> str | None:
    """What an unknown key probably meant: a name of the same mapping, or the dotted path of a likelier one elsewhere."""
    written = str(location[-1])
    around, here = _walk(model, location[:-1])
    sibling = nearest(written, [name for candidate in here for name in candidate.model_fields])
    near_first = sorted(_dotted_fields(model, ()), key=lambda path: -_shared(path, _starred(around)))
    paths = [path for path in near_first if path != (*_starred(around), written)]  # known there, but in another kind of entry
    leaf = nearest(written, [path[-1] for path in paths], cutoff=0.75)
    if leaf is None or (sibling is not None and _likeness(written, sibling) >= _likeness(written, leaf)):
        return sibling
    return ".".join(next(path for path in paths if path[-1] == leaf))


def _starred(names: list[str]) -> tuple[str, ...]:
    return tuple("*" if name.isdigit() else name for name in names)


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many names two paths have in common before they part."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _dotted_fields(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The path of every field at every level; '*' stands for any item of a list."""
    for name, field in model.model_fields.items():
        path = (*prefix, name)
        yield path
        inside = (*path, "*") if getattr(field.annotation, "__origin__", None) is tuple else path
        for nested in models_in(field.annotation):
            yield from _dotted_fields(nested, inside)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections of the schema that an annotation names: itself, or those of its union, list or option."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in models_in(argument)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
