"""`fedhelp simulate` as processes: what a killed study leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import Processes, TinyFederation, wait_until

pytestmark = pytest.mark.slow


def test_the_workers_of_a_killed_study_end_too(make_tiny: Callable[..., TinyFederation], processes: Processes, tmp_path: Path) -> None:
    study = processes.fedhelp(
        "simulate", make_tiny(algorithm__rounds=100_000).path, "--methods", "fedavg", "--seeds", "1,2", "--workers", "2", "--out", tmp_path / "study")
    wait_until(lambda: sum("spawn_main" in command for command in processes.alive().values()) == 2, "both workers at work")

    study.kill()

    processes.wait_until_gone()
