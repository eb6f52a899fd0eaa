"""`fedhelp simulate` as processes: what a killed study leaves behind, and what a finished one tells the reports of runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhelp_core.tracking.server import client_of, tracking_uri
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
    assert lines[0] == "round,silo,outcome,private_loss,validation_score,update_norm,round_seconds,reason"
    assert [line.split(",")[:3] for line in lines[1:]] == [["1", silo, "answered"] for silo in SILOS]
    assert "No finite values to draw" in page, "no hospital has enough validation images for scores by round, and the page says so"


def test_by_round_a_run_has_scores_of_hospitals_with_enough_validation_images(
    make_tiny: Callable[..., TinyFederation], processes: Processes,
) -> None:
    tiny = make_tiny(algorithm__method="fedavg", algorithm__normalisation="silo", algorithm__rounds=3, evaluation__every=1,
                     evaluation__min_validation_images=4)
    tiny.write_silo("aachen", data__validation_fraction=0.5)  # 6 images; brno and coimbra have none
    unscored = make_tiny(algorithm__method="fedavg", algorithm__normalisation="silo", algorithm__rounds=3, evaluation__every=0,
                         evaluation__min_validation_images=4)
    unscored.write_silo("aachen", data__validation_fraction=0.5)
    for federation in (tiny, unscored):
        code, output = ended(processes.fedhelp("run", federation.path, "--run-id", "r"))
        assert code == 0, output
    assert tiny.final_sha256("r") == unscored.final_sha256("r"), "who looks changes nothing"

    rows = list(csv.DictReader((tiny.store / "runs" / "r" / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    scored = {(int(row["round"]), row["silo"]): float(row["validation_score"]) for row in rows if row["validation_score"]}
    assert scored.keys() == {(1, "aachen"), (2, "aachen")}, "who takes part in a round scores the model that it begins with"
    assert all(0 <= score <= 1 for score in scored.values())
    assert "Balanced accuracy on validation images" in (tiny.store / "runs" / "r" / "report.html").read_text(encoding="utf-8")
    client = client_of(tracking_uri(tiny.load()))
    [run] = client.search_runs(["1"])
    for name in ("aachen.validation_score", "mean_validation_score"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert logged == pytest.approx({number: scored[number, "aachen"] for number in (1, 2)}, rel=1e-5)
