"""`fedhelp simulate` as processes: what a killed study leaves behind, and what a finished one tells the reports of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import SILOS, Processes, TinyFederation, ended, wait_until

pytestmark = pytest.mark.slow


def test_the_workers_of_a_killed_study_end_too(make_tiny: Callable[..., TinyFederation], processes: Processes, tmp_path: Path) -> None:
    study = processes.fedhelp(
        "simulate", make_tiny(algorithm__rounds=100_000).path, "--methods", "fedavg", "--seeds", "1,2", "--workers", "2", "--out", tmp_path / "study")
    wait_until(lambda: sum("spawn_main" in command for command in processes.alive().values()) == 2, "both workers at work")

    study.kill()

    processes.wait_until_gone()


def test_after_a_study_the_report_of_a_run_has_training_alone_and_fedavg_beside_it(
    make_tiny: Callable[..., TinyFederation], processes: Processes, tmp_path: Path,
) -> None:
    tiny = make_tiny(algorithm__method="fedavg", algorithm__normalisation="silo", algorithm__rounds=1)
    code, output = ended(processes.fedhelp(
        "simulate", tiny.path, "--methods", "local,fedavg", "--normalisation", "silo", "--seeds", "1,2", "--workers", "1",
        "--out", tmp_path / "study", "--json"))
    assert code == 0, output
    assert "no rounds.png: of these 1 rounds the last alone was scored" in output
    found = json.loads(output[output.index("{\n"):])
    assert [row["method"] for row in found["rows"]] == ["local", "fedavg"]
    assert {Path(path).name for path in found["files"]} == {"table.md", "table.csv", "scores.csv", "rounds.csv", "scores.png", "scores.svg"}

    code, output = ended(processes.fedhelp("run", tiny.path))
    assert code == 0, output
    [report] = (tiny.store / "runs").glob("*/report.html")
    page = report.read_text()
    assert "Beside other methods: balanced accuracy, mean over 2 seeds" in page
    assert ">training alone</th>" in page and ">FedAvg</th>" in page
    lines = (report.parent / "rounds.csv").read_text().splitlines()
    assert lines[0] == "round,silo,outcome,private_loss,update_norm,round_seconds,reason"
    assert [line.split(",")[:3] for line in lines[1:]] == [["1", silo, "answered"] for silo in SILOS]
