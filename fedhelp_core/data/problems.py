"""Many problems of one cause as one line: a folder that is not there must not give a line for each of its files. Called wherever data's problems are
listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedhelp_core.errors import listed

_ALIKE = 3  # so many of one kind are still told one by one
_NAMED = 3  # of those that are grouped
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|[^\s;,:()]+\.\w{1,6}\b|[^\s;,:()]*\d[^\s;,:()]*")
"""What differs between problems of one cause: what is quoted, paths, files' names, whatever has a number in it."""
_PATH = re.compile(r"/[^:]*/(?=[^/:]+)")


def told(problems: Iterable[str]) -> list[str]:
    """`problems` for people: alike ones grouped, then the first fifty."""
    return listed(grouped(problems))


def grouped(problems: Iterable[str]) -> list[str]:
    """`problems`, in order; more than three alike become one that names some and counts the others."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(_kind(problem), []).append(problem)
    found: list[str] = []
    for alike in kinds.values():
        if len(alike) <= _ALIKE:
            found += alike
        else:
            others = ", ".join(_differing(alike)[1 : 1 + _NAMED])
            found.append(f"{alike[0]} (and {len(alike) - 1:,} more alike: {others}{', ...' if len(alike) > 1 + _NAMED else ''})")
    return found


def _kind(problem: str) -> str:
    """Equal for problems of one silo and folder that say the same."""
    folder = _PATH.search(problem)
    head, colon, rest = problem.partition(": ")
    silo = f"{head}{colon}" if head.startswith("silo ") else ""
    return f"{silo}{folder.group() if folder else ''}{_VARYING.sub('*', rest if silo else problem)}"


def _differing(alike: list[str]) -> list[str]:
    """Of each the first thing in which it differs from the first one, without its folder."""
    parts = [_VARYING.findall(problem) for problem in alike]
    place = next((i for i, values in enumerate(zip(*parts, strict=False)) if len(set(values)) > 1), 0)
    return [found[place].rstrip(":").rpartition("/")[2].strip("'\"") if found else "the same again" for found in parts]
