"""The tiny federation (tiny.py) as fixtures: its input drawn once a session, a new folder for every test."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.one_thread  # noqa: F401  (before NumPy and PyTorch)
from tests import tiny, watchdog
from tests.costs import (
    processor_seconds,
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
from tests.warm import end_server
from tests.watchdog import pytest_sessionstart

__all__ = [
    "pytest_addoption", "pytest_configure", "pytest_configure_node", "pytest_report_header", "pytest_runtest_logstart", "pytest_runtest_makereport",
    "pytest_sessionstart", "pytest_terminal_summary",
]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job passes that on, and tests of Ctrl-C would find it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

_UNIT = pytest.StashKey[bool]()
UNIT_LIMIT, UNIT_WAIT, SLOW_LIMIT = 10, 60, 300
"""Seconds of a test's own code, not of its fixtures: a unit test computes; one marked slow starts processes, or imports MONAI or MLflow.

The first is of processor time, which others on the machine do not change."""


def pytest_sessionfinish() -> None:
    """What the session started ends with it."""
    end_server()
    watchdog.pytest_sessionfinish()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A limit for every test that names none of its own, and the order that was asked for."""
    if config.option.shuffle:
        shuffle(items, config.option.shuffle)
    for item in items:
        if item.get_closest_marker("timeout") is None:
            slow = item.get_closest_marker("slow") or item.get_closest_marker("cluster")
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT if slow else UNIT_WAIT))
            item.stash[_UNIT] = not slow


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A unit test that computes for too long fails."""
    began = processor_seconds()
    yield
    took = processor_seconds() - began
    if item.stash.get(_UNIT, False) and took > UNIT_LIMIT:
        pytest.fail(f"{took:.1f} s of processor time, at most {UNIT_LIMIT} expected of a unit test; compute less, or mark it slow")


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of a name, which a function has filled: once, in whichever of xdist's processes asks first. Only to be read."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-once"
    shared.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def drawn(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder with the hospitals' images, the public ones and the teacher. Only to be read."""
    return make_once("drawn", tiny.draw_input)


@pytest.fixture(scope="session")
def finished(make_once: Callable[[str, Callable[[Path], object]], Path], drawn: Path) -> Callable[..., TinyFederation]:
    """Gives a federation whose run `first` has ended, and printed.txt with what it said; the same for all tests that ask for the same.

    `task`: one of tiny_tasks.py's; None: melanoma. `changes` are those of `make_tiny`. Only to be read: a test that goes on takes `copied`.
    """

    def get(task: str | None = None, **changes: Any) -> TinyFederation:
        def make(folder: Path) -> None:
            from tests.tiny_tasks import write_task  # with PyTorch

            made = TinyFederation.written(folder, drawn, **changes) if task is None else write_task(task, folder, **changes)
            with tiny.processes() as started:
                printed = tiny.succeeded(started.fedhelp("run", made.path, "--run-id", "first"))
            (folder / "printed.txt").write_text(printed, encoding="utf-8")

        name = hashlib.sha256(json.dumps([task, changes], sort_keys=True).encode()).hexdigest()[:12]
        folder = make_once(f"finished-{name}", make)
        return TinyFederation(folder, drawn if task is None else folder)

    return get


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[TinyFederation], TinyFederation]:
    """Copies a federation with its runs and MLflow's file, for a test that goes on there: with other runs, since a run's config names its store."""
    numbers = itertools.count(1)
    return lambda original: TinyFederation(shutil.copytree(original.folder, tmp_path / f"copy-{next(numbers)}"), original.drawn)


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
