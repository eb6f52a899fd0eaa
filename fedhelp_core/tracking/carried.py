"""Source that a model carries: modules of FedHelp and all of FedHelp that they import, in one zip that Python imports from. Called by models.py."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = "fedhelp_core"
_ROOT = Path(__file__).resolve().parents[1]
_THEN = (1980, 1, 1, 0, 0, 0)  # zip's first second: the same source is the same file


def write_source(path: Path, modules: Iterable[str]) -> None:
    """The zip at `path`, with `modules` (dotted names) and what they import."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in sorted(closure(modules).items()):
            inside = f"{name.replace('.', '/')}/__init__.py" if file.name == "__init__.py" else f"{name.replace('.', '/')}.py"
            archive.writestr(zipfile.ZipInfo(inside, _THEN), file.read_bytes(), zipfile.ZIP_DEFLATED)


def closure(modules: Iterable[str]) -> dict[str, Path]:
    """Name -> file of `modules`, of all that they import of FedHelp wherever in their text, and of the packages around them."""
    found: dict[str, Path] = {}
    wanted = list(modules)
    while wanted:
        name = wanted.pop()
        file = _file_of(name)
        if name in found or file is None:  # a name inside a module
            continue
        found[name] = file
        wanted += [name.rpartition(".")[0], *_imported(file)]
    return found


def _file_of(name: str) -> Path | None:
    stem = _ROOT.joinpath(*name.split(".")[1:])
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if name.startswith(_PACKAGE) and file.is_file()), None)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
