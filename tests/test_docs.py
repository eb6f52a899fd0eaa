"""What README and docs/ tell people to type exists, and what they point at is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fedhelp_cli.main import main

ROOT = Path(__file__).parent.parent
_TRACKED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
_PLACEHOLDER = re.compile(r"<[^>]*>|\.\.\.|…")


def pages() -> list[Path]:
    return [ROOT / name for name in _TRACKED]


def commands(program: str) -> Iterator[tuple[str, str]]:
    """(page, command line) of every console line and code span that starts with `program`."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, re.DOTALL)
        lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*lines, *spans]:
            line = line.removeprefix("$ ").removeprefix(".venv/bin/")
            if line.startswith(f"{program} "):
                yield page.relative_to(ROOT).as_posix(), line


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    gone = [t for t in targets if not t.startswith(("http://", "https://", "mailto:", "#")) and not (page.parent / t.partition("#")[0]).exists()]
    assert not gone


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_into_a_page_names_one_of_its_headings(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    gone = [f"{name}#{anchor}" for name, anchor in targets if anchor not in anchors(page.parent / name if name else page)]
    assert not gone


def anchors(page: Path) -> set[str]:
    """As GitHub and the documentation site make them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_address_elsewhere_is_well_formed(page: Path) -> None:
    targets = re.findall(r"\]\((https?:[^)]*)\)", page.read_text(encoding="utf-8"))
    wrong = [t for t in targets if not re.fullmatch(r"https://([a-z0-9-]+\.)+[a-z]{2,}(/[\w./#?=&%+~-]*)?", t)]
    assert not wrong, f"an address with https and a host's full name expected, got {wrong}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {(page, word) for page, line in commands("make") for word in shlex.split(line, comments=True)[1:] if re.fullmatch(r"[a-z0-9-]+", word)}
    assert len(named) > 3
    assert not {(page, word) for page, word in named if word not in targets}


def test_every_fedhelp_command_that_is_shown_takes_its_arguments() -> None:
    shown = sorted(set(commands("fedhelp")))
    assert len(shown) > 10
    wrong = [f"{page}: {line}: {fault}" for page, line in shown if (fault := fault_of(line))]
    assert not wrong, "\n".join(wrong)


def fault_of(line: str) -> str | None:
    """Why the command line of `fedhelp` would be refused, or None. Prose such as `fedhelp run` alone needs no arguments."""
    words = shlex.split(re.split(r"\s[|>&]", line)[0], comments=True)[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        if found is None:
            return f"no command {words[0]!r}"
        command, words = found, words[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"-h", "--help"}
    return next((f"no option {w!r}" for w in words if w.startswith("-") and w.partition("=")[0] not in known and not _PLACEHOLDER.search(w)), None)


def test_every_module_that_is_shown_to_be_run_exists() -> None:
    shown = {(page, match.group(1)) for page, line in commands("python") if (match := re.match(r"python3? -m ([\w.]+)", line))}
    assert shown
    assert not {(page, name) for page, name in shown if name.split(".")[0] != "pip" and importlib.util.find_spec(name) is None}


def test_the_table_of_equations_names_functions_that_say_which_equation_they_are() -> None:
    rows = re.findall(r"^\| Eq ([\d, ]+) \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [number for numbers, _ in rows for number in numbers.split(", ")] == list("1234567")
    for numbers, cell in rows:
        said = [re.findall(r"Eq (\d)", docstring_of(span).splitlines()[0])[:1] for span in re.findall(r"`([^`]+)`", cell)]
        assert sorted({number for found in said for number in found}) == numbers.split(", "), cell


def docstring_of(span: str) -> str:
    """That of the function which `folder/file.function` names below fedhelp_core; read, since importing them all takes seconds."""
    module, _, name = span.rpartition(".")
    tree = ast.parse((ROOT / "fedhelp_core" / f"{module}.py").read_text(encoding="utf-8"))
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return ast.get_docstring(function) or ""


_TABLES = [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", _TABLES, ids=lambda page: page.name)
def test_every_file_that_a_table_of_places_names_is_there(page: Path) -> None:
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    named = [span for row in rows for span in re.findall(r"`([\w/.-]+\.(?:py|yaml))`", row) if span.endswith(".py") or "/" in span]
    assert len(named) > 10
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [f"/{path}" for path in files.stdout.split()]
    assert not [span for span in named if not any(path.endswith(f"/{span}") for path in paths)]


def test_every_field_of_the_configuration_has_its_line_and_its_reason() -> None:
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "docs" / "configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.page()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == made, "run: make charts"
    lines = [line for line in made.splitlines() if line.startswith("| `")]
    assert len(lines) > 120
    assert [line for line in lines if len(line.split(" | ")[-1]) < 8] == []
    for line in ("| `temperature` | number, above 0, at most 1,000 | `1` | T of Eq 2-4; paper. |",
                 "| `datalist` | path | **required** | The JSON file, as `fedhelp data ingest` writes it. |"):
        assert line in lines
