"""What each test costs in processor time, its processes included, and in which order tests run. conftest.py imports the hooks.

`--slowest 20` prints the dearest tests at the end and `--costs FILE` writes all of them as CSV. `--shuffle SEED` runs files in random order, and the
tests of each file; `--shuffle any` draws a seed. Wall time says little on a machine that others use too, processor time does.
"""

from __future__ import annotations

import csv
import os
import random
import secrets
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_began = 0.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """The three options."""
    group = parser.getgroup("costs and order")
    group.addoption("--slowest", type=int, default=0, metavar="N", help="print the N tests that took most processor time")
    group.addoption("--costs", type=Path, metavar="FILE", help="write every test's seconds of processor and wall time, as CSV")
    group.addoption("--shuffle", metavar="SEED", help="run files, and the tests of each, in an order drawn from SEED; 'any' draws the seed")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed, once for all of xdist's processes: they must agree on the order."""
    if config.option.shuffle == "any":
        drawn = getattr(config, "workerinput", {}).get("shuffle")
        config.option.shuffle = drawn or secrets.token_hex(4)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a process of xdist's."""
    node.workerinput["shuffle"] = node.config.option.shuffle


def pytest_report_header(config: pytest.Config) -> list[str]:
    """How to have the same order again."""
    return [f"order: --shuffle {config.option.shuffle}"] if config.option.shuffle else []


def shuffle(items: list[pytest.Item], seed: str) -> None:
    """Files in random order, and the tests of a file, whose fixtures are made once."""
    files: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    source = random.Random(seed)
    order = sorted(files)
    source.shuffle(order)
    for tests in files.values():
        source.shuffle(tests)
    items[:] = [item for path in order for item in files[path]]


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart() -> None:
    """A test begins."""
    global _began
    _began = processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What this phase of the test took, in its report, which may travel from another process."""
    global _began
    report = yield
    now = processor_seconds()
    report.user_properties.append((f"processor_s:{report.when}", round(now - _began, 3)))  # type: ignore[attr-defined]
    _began = now
    return report  # type: ignore[return-value]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The dearest tests, and all of them in a file."""
    if not config.option.slowest and config.option.costs is None:
        return
    costs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # processor, of it fixtures, wall
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            phases = [(name, value) for name, value in report.user_properties if name == f"processor_s:{report.when}"]
            cost = costs[report.nodeid]
            cost[0] += sum(value for _, value in phases)  # type: ignore[misc]
            cost[1] += sum(value for _, value in phases if report.when != "call")  # type: ignore[misc]
            cost[2] += report.duration
    order = sorted(costs.items(), key=lambda entry: -entry[1][0])
    if config.option.slowest and order:
        terminalreporter.section(f"slowest {config.option.slowest}: processor seconds, of which fixtures; wall time")
        for test, (processor, fixtures, wall) in order[:config.option.slowest]:
            terminalreporter.write_line(f"{processor:8.1f} s {fixtures:8.1f} s {wall:8.1f} s  {test}")
        total = [sum(cost[part] for cost in costs.values()) for part in range(3)]
        terminalreporter.write_line(f"{total[0]:8.1f} s {total[1]:8.1f} s {total[2]:8.1f} s  all {len(costs)} tests")
    if config.option.costs is not None:
        with open(config.option.costs, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["test", "processor_s", "of_which_fixtures_s", "wall_s"])
            rows.writerows([test, *(f"{value:.3f}" for value in cost)] for test, cost in order)
