"""What all commands print alike: commands that people can paste into a shell, whatever the names of their folders, and warnings."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


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
