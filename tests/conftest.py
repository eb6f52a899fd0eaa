"""The tiny federation (tiny.py) as fixtures: its input drawn once a session, a new folder for every test."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.costs import (
    pytest_addoption,
    pytest_configure,
    pytest_configure_node,
    pytest_report_header,
    pytest_runtest_logstart,
    pytest_runtest_makereport,
    pytest_terminal_summary,
    shuffle,
)
from tests.tiny import Processes, TinyFederation
from tests.watchdog import pytest_sessionfinish, pytest_sessionstart

__all__ = [
    "pytest_addoption", "pytest_configure", "pytest_configure_node", "pytest_report_header", "pytest_runtest_logstart", "pytest_runtest_makereport",
    "pytest_sessionfinish", "pytest_sessionstart", "pytest_terminal_summary",
]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job passes that on, and tests of Ctrl-C would find it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

UNIT_LIMIT, SLOW_LIMIT = 10, 300
"""Seconds of a test's own code, not of its fixtures: a unit test computes; one marked slow starts processes, or imports MONAI or MLflow."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A limit for every test that names none of its own, and the order that was asked for."""
    if config.option.shuffle:
        shuffle(items, config.option.shuffle)
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT if item.get_closest_marker("slow") or item.get_closest_marker("cluster") else UNIT_LIMIT))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the hospitals' images, the public ones and the teacher. Only to be read."""
    folder = tmp_path_factory.mktemp("drawn")
    tiny.draw_input(folder)
    return folder


@pytest.fixture
def make_tiny(drawn: Path, tmp_path: Path) -> Callable[..., TinyFederation]:
    """Writes a tiny federation into a folder of its own; arguments are changes, e.g. algorithm__rounds=3."""
    numbers = itertools.count(1)

    def make(**changes: Any) -> TinyFederation:
        return TinyFederation.written(tmp_path / f"federation-{next(numbers)}", drawn, **changes)

    return make


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts real processes; at the end of the test none of them is left."""
    with tiny.processes() as started:
        yield started
