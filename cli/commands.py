"""What all commands print alike: commands that people can paste into a shell, whatever the names of their folders, warnings, and JSON."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def quoted(part: str | Path) -> str:
    """One word of a command line."""
    return shlex.quote(str(part))


def warn(command: str, sentence: str) -> None:
    """Print `sentence` beside what `fedhelp COMMAND` prints itself; nothing where it is blank."""
    if sentence:
        print(f"fedhelp {command}: warning: {sentence}", file=sys.stderr)


def own_command(name: str) -> str:
    """A command of this installation with its folder, since $PATH may be what make or uv set for this process alone."""
    return quoted(Path(sys.executable).parent / name)


def run_command(path: Path, changes: Mapping[str, Any]) -> str:
    """`fedhelp run` of the file at `path` with `changes` to it."""
    return " ".join(["run", quoted(path), *(f"--set {quoted(field + '=' + _typed(value))}" for field, value in changes.items())])


def _typed(value: Any) -> str:
    """What to type after '=' so that --set reads `value`: JSON, or text that is none."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)


def print_json(document: dict[str, Any]) -> None:
    """What a command found, for programs: one object on standard output, no number in it NaN."""
    print(json.dumps(_with_null(document), indent=2, allow_nan=False))


def _with_null(node: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(node, dict):
        return {key: _with_null(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_with_null(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
