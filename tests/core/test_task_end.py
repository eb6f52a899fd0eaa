"""A node's log ends with its one sentence, whether it failed or not, and Kubernetes is told the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhelp_core import processes
from fedhelp_core.errors import ConfigError


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What Kubernetes reads of a container that has ended: the kubelet makes the file."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setattr(processes, "TERMINATION_LOG", path)
    before = signal.getsignal(signal.SIGTERM)
    yield path
    signal.signal(signal.SIGTERM, before)


def test_a_task_that_went_well_ends_with_its_sentence(message: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with processes.task("check") as ends_with:
        print("something")
        ends_with("run r: 3 silos have checked their data")

    assert capsys.readouterr().out.splitlines()[-1] == "run r: 3 silos have checked their data"
    assert message.read_text() == "run r: 3 silos have checked their data"


def test_a_task_that_failed_ends_with_the_errors_sentence(message: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with processes.task("check") as ends_with:
            ends_with("all is well")
            raise ConfigError("rounds: 1 expected, got 0")

    with pytest.raises(SystemExit) as ended:
        fails()

    assert ended.value.code == ConfigError.exit_code
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "check: error: rounds: 1 expected, got 0"
    assert "all is well" not in captured.out
    assert message.read_text() == "rounds: 1 expected, got 0"


def test_outside_of_a_pod_nothing_is_left_and_a_long_message_is_cut(message: Path) -> None:
    with processes.task("check") as ends_with:
        ends_with("x" * 10_000)
    assert len(message.read_bytes()) == 4096
    message.unlink()
    with processes.task("check") as ends_with:
        ends_with("done")
    assert not message.exists()
