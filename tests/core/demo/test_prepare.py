"""A demo's hospitals are drawn by a second process: it ends with the first, and what stops it is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from fedhelp_core.demo.prepare import prepare_demo
from fedhelp_core.errors import ConfigError

pytestmark = pytest.mark.slow


def test_a_demo_whose_second_process_was_killed_says_so_and_goes_on_with_the_same_command(tmp_path: Path) -> None:
    said: list[str] = []

    def kill_it(what: str) -> None:
        if not said:
            [drawing] = multiprocessing.active_children()
            assert drawing.pid is not None
            os.kill(drawing.pid, signal.SIGKILL)
        said.append(what)

    with pytest.raises(ConfigError, match=r"data: the process that draws its images ended with exit -9; the same command goes on"):
        prepare_demo(tmp_path / "demo", progress=kill_it)
    assert not multiprocessing.active_children()
    prepare_demo(tmp_path / "demo")
    assert (tmp_path / "demo" / "data" / "train_test_split.csv").is_file()


def test_what_stops_the_first_process_ends_the_second(tmp_path: Path) -> None:
    def stop(_what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_demo(tmp_path / "demo", progress=stop)
    assert not multiprocessing.active_children()
