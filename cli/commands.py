"""Commands as people can paste them into a shell, whatever the names of their folders. Called by all that print commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def quoted(part: str | Path) -> str:
    """One word of a command line."""
    return shlex.quote(str(part))


def own_command(name: str) -> str:
    """A command of this installation with its folder, since $PATH may be what make or uv set for this process alone."""
    return quoted(Path(sys.executable).parent / name)
