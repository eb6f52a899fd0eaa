"""MONAI's networks that a model may be: `networks.json`, which docs/networks.py makes of the locked MONAI. Data only, no PyTorch, no MONAI.

Read by the config, which checks names and arguments against it before anything starts, and by models/build.py. What a network is of is looked up
in this list alone: no text of a YAML is ever imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from fedhelp_core.printable import nearest

Kind = Literal["int", "float", "bool", "str", "null", "ints", "list", "layer"]
"""What an argument may be. `ints`: a list of numbers; `list`: of numbers, words and lists of them; `layer`: a name, or [name, {argument: value}]."""
Given = Literal["dimensions", "channels", "outputs", "sides", "shape"]
"""What the task decides: of its images the dimensions, channels, sides (a list) and shape (channels, then sides); outputs of the head."""

_MOST_NUMBER = 4096  # channels and layers that no hospital's machine trains; a check must not spend an hour building them
_MOST_ITEMS = 64  # of a list: levels and blocks of a network
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN: Mapping[Kind, str] = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "null": "null", "ints": "a list of whole numbers",
    "list": "a list of numbers", "layer": "a layer's name, or [name, {argument: value}]"}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a network."""

    kinds: tuple[Kind, ...]
    required: bool
    default: Any = None


@dataclass(frozen=True, kw_only=True)
class MonaiNetwork:
    """A network of `monai.networks.nets`."""

    name: str
    module: str
    """File of `monai.networks.nets` that it is in."""
    dimensions: tuple[int, ...]
    """Of images that it knows."""
    per_pixel: bool
    """Whether every pixel or voxel is answered; else the image."""
    given: Mapping[str, Given]
    """Arguments that the task decides."""
    fixed: Mapping[str, Any]
    """Arguments that are always the same: nothing is downloaded."""
    arguments: Mapping[str, Argument]
    sides_multiple_of: int = 1  # the check's forward pass says what its arguments make of it
    halvings: int = 0

    def problems_of(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong with `arguments`, a sentence each."""
        for name, value in arguments.items():
            if name in self.given:
                yield f"arguments.{name}: the task decides it ({self.given[name]}); leave it out"
            elif name in self.fixed or name.startswith("pretrained"):
                yield f"arguments.{name}: nothing is downloaded in training; leave it out, and name a file in algorithm.pretrained"
            elif name not in self.arguments:
                near = nearest(name, self.arguments)
                hint = f"did you mean {near!r}?" if near else f"it takes {', '.join(self.arguments) or 'none'}"
                yield f"arguments.{name}: {self.name} has no such argument; {hint}"
            elif not any(_is(kind, value) for kind in self.arguments[name].kinds):
                expected = " or ".join(_PLAIN[kind] for kind in self.arguments[name].kinds)
                yield f"arguments.{name}: {expected} expected (numbers up to {_MOST_NUMBER}, lists up to {_MOST_ITEMS}), got {repr(value)[:80]}"
        for name, argument in self.arguments.items():
            if argument.required and name not in arguments:
                yield f"arguments.{name}: missing; {self.name} needs {' or '.join(_PLAIN[kind] for kind in argument.kinds)}"


@cache
def networks() -> Mapping[str, MonaiNetwork]:
    """All of them by name."""
    document = json.loads(files(__package__).joinpath("networks.json").read_text(encoding="utf-8"))
    return {name: _network(name, entry) for name, entry in document["networks"].items()}


def _network(name: str, entry: Any) -> MonaiNetwork:
    arguments = {
        argument: Argument(kinds=tuple(one["kinds"]), required="default" not in one, default=one.get("default"))
        for argument, one in entry["arguments"].items()}
    return MonaiNetwork(
        name=name, module=entry["module"], dimensions=tuple(entry["dimensions"]), per_pixel=entry["per_pixel"], given=entry["given"],
        fixed=entry["fixed"], arguments=arguments)


def _is(kind: Kind, value: Any) -> bool:
    if kind in ("int", "float"):
        numbers: tuple[type, ...] = (int,) if kind == "int" else (int, float)
        return type(value) in numbers and math.isfinite(value) and abs(value) <= _MOST_NUMBER
    if kind == "ints":
        return isinstance(value, list) and len(value) <= _MOST_ITEMS and all(_is("int", one) for one in value)
    if kind == "list":
        return isinstance(value, list) and len(value) <= _MOST_ITEMS and all(_is_scalar(one) or _is("ints", one) for one in value)
    if kind == "layer":
        named = [value] if isinstance(value, str) else value
        return (isinstance(named, list) and len(named) in (1, 2) and _is("str", named[0])
                and all(isinstance(one, dict) and all(_is("str", key) and _is_scalar(at) for key, at in one.items()) for one in named[1:]))
    if kind == "null":
        return value is None
    return isinstance(value, bool) if kind == "bool" else isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_scalar(value: Any) -> bool:
    return any(_is(kind, value) for kind in ("int", "float", "bool", "str", "null"))
