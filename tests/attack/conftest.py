"""The attack suite: `make attack` runs every test below this folder, and ends with one table of what was tried and what came through.

A file is an area, named after what is attacked. A test is one attack, or as many as it tells the fixture `tried`. A known hole is
marked `xfail` with its reason: the table then names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ATTACKS = pytest.StashKey[int]()


@dataclass
class Area:
    """What was tried against one part, and what came through."""

    tried: int = 0
    through: list[str] = field(default_factory=list)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is an attack."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.attack)


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Called once an input, by tests that try many."""
    request.node.stash[ATTACKS] = 0

    def count() -> None:
        request.node.stash[ATTACKS] += 1

    return count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Hand the count on to the report, which may travel from another process."""
    report = yield
    if report.when == "call" and item.get_closest_marker("attack"):  # type: ignore[attr-defined]
        report.user_properties.append(("attacks", max(1, item.stash.get(ATTACKS, 1))))  # type: ignore[attr-defined]
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table."""
    areas: dict[str, Area] = {}
    for outcome in ("passed", "failed", "xfailed", "error"):
        for report in terminalreporter.getreports(outcome):
            attacks = dict(getattr(report, "user_properties", ())).get("attacks")  # a file that cannot be imported has none
            if attacks is None and not (outcome == "error" and Path(report.nodeid.partition("::")[0]).is_relative_to("tests/attack")):
                continue
            area = areas.setdefault(Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_"), Area())
            area.tried += int(attacks or 0)
            if outcome != "passed":
                why = getattr(report, "wasxfail", "") or "NOT KNOWN BEFORE"
                area.through.append(f"{report.nodeid.partition('::')[2]}: {why}")
    if not areas:
        return
    terminalreporter.section("attacks")
    for name, area in sorted(areas.items()):
        terminalreporter.write_line(f"{name:24} {area.tried:8,} tried   {len(area.through) or 'nothing'} came through")
        for hole in area.through:
            terminalreporter.write_line(f"{'':24}   {hole}")
    through = sum(len(area.through) for area in areas.values())
    terminalreporter.write_line(f"{'all':24} {sum(area.tried for area in areas.values()):8,} tried   {through or 'nothing'} came through")
