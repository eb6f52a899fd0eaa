"""One silo writes what makes no sense: it is named, and the others' run is theirs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from fedhelp_components.evaluation.report import evaluation_of
from fedhelp_core.errors import PermanentError
from tests.components.test_same_result import run_components
from tests.tiny import Processes, TinyFederation, ended, last_json, set_field, succeeded

pytestmark = pytest.mark.slow

SHA = "0" * 64


def evaluation(tiny: TinyFederation, **changes: Any) -> bytes:
    """A perfect one of brno, but for `changes`: fields with '__' for '.'."""
    report = tiny.run("r").silo_report("brno")
    assert report is not None
    diagonal = [[report.samples.test if row == column == 0 else 0 for column in range(8)] for row in range(8)]
    document = {
        "silo": "brno", "kind": "small", "round": 1, "global_sha256": tiny.final_sha256("r"), "test_samples": report.samples.test,
        "test_sha256": report.test_sha256, "deployed": "proxy",
        "models": {"proxy": {
            "scores": {"balanced_accuracy": 1.0, "auroc": 1.0, "accuracy": 1.0, "argmax_balanced_accuracy": 1.0, "ece": 0.0, "brier": 0.0},
            "confusion": diagonal, "argmax_confusion": diagonal, "operating_point": "validation"}}}
    for field, value in changes.items():
        set_field(document, field.replace("__", "."), value)
    return json.dumps(document).encode()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_evaluation_that_makes_no_sense_is_left_out_and_the_others_are_scored(
    make_tiny: Callable[..., TinyFederation], processes: Processes,
) -> None:
    tiny = make_tiny(algorithm__method="fedavg", algorithm__rounds=1, protocol__min_silos=2)
    run_components(tiny, processes, "r")
    page = tiny.folder / "report.html"
    nonsense = {
        b"<html>": "runs/r/evaluation/brno.json: document: ",
        b'{"silo": "brno"}': "runs/r/evaluation/brno.json: kind: ",
        evaluation(tiny, models__proxy__scores__balanced_accuracy=1e300):
            "models.proxy.scores.balanced_accuracy: a number from 0 to 1 expected, got 1e+300",
        evaluation(tiny, models__proxy__scores__accuracy=1e-320): "models.proxy.scores.accuracy: 1 expected, which its own confusion matrix gives",
        evaluation(tiny, models__proxy__argmax_confusion=[]): "models.proxy.argmax_confusion: 8 rows of 8 counts expected, got sides of [0]",
        evaluation(tiny, models__proxy__operating_point="mine"): "runs/r/evaluation/brno.json: models.proxy.operating_point: ",
        evaluation(tiny, global_sha256=SHA): "global_sha256: the final model's ",
        evaluation(tiny, test_sha256=SHA): "test_sha256: ",
        evaluation(tiny, kind="large"): "kind: 'small' expected, which this silo's check found, got 'large'",
    }
    run, task = tiny.run("r"), tiny.load().task
    final = run.latest_commit()
    assert final is not None
    for number, (body, what) in enumerate(nonsense.items()):
        run.store.put("runs/r/evaluation/brno.json", body)
        with pytest.raises(PermanentError) as refused:
            evaluation_of(run, "brno", task, final)
        assert str(refused.value).startswith(what)
        if 0 < number < len(nonsense) - 1:  # the first and the last through the whole component, which takes seconds
            continue
        output = succeeded(processes.component("evaluation", "--store", str(tiny.store), "--run", "r", "--report-file", str(page)))
        assert f"silo brno: left out of the evaluation: its evaluation is not taken: {what}" in output
        metrics = last_json(output)
        assert set(metrics) >= {"aachen", "coimbra"} and "brno" not in metrics, what
        assert 0 <= metrics["all_silos_mean"] <= 1, what
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>"), what


def test_a_silo_whose_report_makes_no_sense_ends_the_check_with_its_name(make_tiny: Callable[..., TinyFederation], processes: Processes) -> None:
    tiny = make_tiny(algorithm__method="fedavg")
    tiny.run("r").store.put("runs/r/silos/brno.json", b'{"silo": "brno", "samples": "many"}')
    code, output = ended(processes.component("check", "--federation", tiny.path, "--run-id", "r"))
    assert code != 0
    assert "brno" in output and "its report makes no sense: " in output and "samples" in output
    assert "Traceback" not in output


def test_a_start_model_that_nobody_draws_from_the_seed_ends_the_check(make_tiny: Callable[..., TinyFederation], processes: Processes) -> None:
    tiny, other = make_tiny(algorithm__method="fedavg"), make_tiny(algorithm__method="fedavg", runtime__seed=6)
    succeeded(processes.component("check", "--federation", other.path, "--run-id", "r"))
    shutil.copytree(other.store / "runs" / "r" / "rounds", tiny.store / "runs" / "r" / "rounds")  # somebody was faster than all silos
    code, output = ended(processes.component("check", "--federation", tiny.path, "--run-id", "r"))
    assert code == PermanentError.exit_code
    assert "the start model in the store is not the one that all silos draw from the seed" in output
    assert "Traceback" not in output
