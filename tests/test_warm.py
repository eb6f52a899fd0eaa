"""A command that is forked behaves as one that was started: its output, exit code, signals, environment and folder are its own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import Processes, TinyFederation, ended, wait_until
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow


def test_code_and_output_are_the_commands_and_its_folder_is_the_one_asked_for(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text("name: [", encoding="utf-8")
    forked = processes.fedhelp("check", "federation.yaml", folder=tmp_path)
    started = processes.fedhelp("check", "federation.yaml", folder=tmp_path, fork=False)
    assert isinstance(forked, WarmProcess) and not isinstance(started, WarmProcess)
    assert ended(forked) == ended(started)
    assert forked.returncode == 10


def test_it_carries_its_mark_and_dies_of_signals_as_any_other(make_tiny: Callable[..., TinyFederation], processes: Processes) -> None:
    tiny = make_tiny(algorithm__rounds=100_000, algorithm__method="fedavg")
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        command = processes.fedhelp("run", tiny.path, "--run-id", "r")
        assert command.pid in processes.alive()
        wait_until(lambda: (tiny.store / "runs" / "r" / "rounds" / "1" / "commit.json").exists(), "a round", 240)
        wait_until(lambda: len(processes.alive()) > 3, "a fork server and workers, which carry the mark too", 240)
        command.send_signal(number)
        assert ended(command)[0] == code
        processes.wait_until_gone()


def test_an_environment_that_python_reads_when_it_starts_is_not_forked(processes: Processes) -> None:
    assert not isinstance(processes.fedhelp("--version", PYTHONHASHSEED="1"), WarmProcess)
    assert isinstance(processes.fedhelp("--version", FEDHELP_LOGS="/nowhere"), WarmProcess)
