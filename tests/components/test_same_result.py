"""One federation, four ways to run it: simulated, as `fedhelp run`, through kfp's local runner, as the components of `fedhelp` side by side."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.protocol.facts import ClassShares
from fedhelp_core.tracking.server import client_of
from tests.tiny import Processes, TinyFederation, ended, last_json, succeeded, wait_until

Copied = Callable[[TinyFederation], TinyFederation]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # seconds; minutes on two idle cores, more where others work beside it


def simulated(tiny: TinyFederation, processes: Processes) -> dict[str, Any]:
    """What `fedhelp simulate` writes of its one cell; it finds the run's soft labels in the ledger."""
    federation, out = tiny.load(), tiny.folder / "study"
    algorithm, seed = federation.algorithm, federation.runtime.seed
    succeeded(processes.fedhelp(
        "simulate", tiny.path, "--methods", algorithm.method, "--normalisation", algorithm.normalisation, "--seeds", seed,
        "--workers", "1", "--evaluate-every", "0", "--out", out))
    (cell,) = out.glob("cells/*.json")
    found: dict[str, Any] = json.loads(cell.read_text(encoding="utf-8"))
    return found


def run_components(tiny: TinyFederation, processes: Processes, run_id: str) -> str:
    """Pipeline `fedhelp` by hand: a silo_training process per silo beside aggregation; the final sha256 that aggregation prints."""
    checked = last_json(succeeded(processes.component("check", "--federation", tiny.path, "--run-id", run_id)))
    names = list(tiny.load().silo_names)
    assert checked["silos"] == names
    where = ("--store", checked["store"], "--run", run_id)
    succeeded(processes.component("soft_label_prefetch", *where))
    silos = [processes.component("silo_training", *where, "--silo", silo) for silo in names]
    final = succeeded(processes.component("aggregation", *where)).strip().splitlines()[-1]
    assert [succeeded(silo).strip().splitlines()[-1] for silo in silos] == ["trained"] * len(names)
    return final


@pytest.mark.parametrize("changes", [
    {"algorithm__normalisation": "shared", "algorithm__weighting": "samples"},
    *(pytest.param(changes, marks=pytest.mark.long) for changes in (
        {"algorithm__normalisation": "silo"},
        {"algorithm__method": "fedavg", "silos__0__dispatch__residency": "round", "silos__1__dispatch__residency": "round"},
        {"algorithm__method": "scaffold", "algorithm__optimizer__kind": "sgd", "algorithm__optimizer__learning_rate": 0.05,
         "silos__2__dispatch__residency": "round"},
        {"algorithm__server_optimizer__kind": "adam", "algorithm__aggregation": "fednova", "algorithm__weighting": "samples"},
        {"algorithm__proxy_model": {"network": "DenseNet", "arguments": {  # a network of MONAI's, with dropout, whose norms stay in hospitals
            "init_features": 8, "growth_rate": 4, "block_config": [2, 2], "dropout_prob": 0.2}},
         "algorithm__large_model": {"network": "resnet10", "arguments": {"widen_factor": 0.125, "no_max_pool": True}},
         "algorithm__normalisation": "silo"})),
], ids=["fedhelp-shared-samples", "fedhelp-silo", "fedavg-residency-round", "scaffold", "fedhelp-adam-fednova", "monai-silo"])
def test_simulation_driver_kfp_and_concurrent_components_end_with_the_same_bits(
    changes: dict[str, object], finished: Callable[..., TinyFederation], copied: Copied, processes: Processes,
) -> None:
    tiny = copied(finished(**changes))
    compact = tiny.final_sha256("first")
    if changes == {"algorithm__normalisation": "silo"}:  # once is enough: it takes half a minute
        succeeded(processes.fedhelp("run", tiny.path, "--run-id", "kfp", "--through-kfp"))
        assert tiny.final_sha256("kfp") == compact
    assert run_components(tiny, processes, "components") == compact
    assert tiny.final_sha256("components") == compact
    assert simulated(tiny, processes)["global_sha256"] == compact


@pytest.mark.parametrize(("task", "changes"), [
    ("brain-segmentation", {}),
    *(pytest.param(task, {}, marks=pytest.mark.long) for task in (
        "pneumonia", "lung-segmentation", "chest-findings", "retinopathy", "chest-organs", "brain-tumours")),
    pytest.param("brain-segmentation", {
        "task__volume__patch_size": 16, "task__volume__window_size": 16, "algorithm__proxy_model": "SegResNet",
        "algorithm__large_model": {"network": "SegResNet", "arguments": {"init_filters": 16}}}, marks=pytest.mark.long),
])
def test_the_other_tasks_end_with_the_same_bits_too_and_are_scored_by_their_own_metrics(
    task: str, changes: dict[str, Any], finished: Callable[..., TinyFederation], copied: Copied, processes: Processes,
) -> None:
    tiny = copied(finished(task, **changes))
    output = (tiny.folder / "printed.txt").read_text(encoding="utf-8")
    compact = tiny.final_sha256("first")
    if task in ("chest-findings", "chest-organs", "brain-tumours"):  # a task of each form: each takes half a minute
        assert run_components(tiny, processes, "components") == compact
    cell = simulated(tiny, processes)
    assert cell["global_sha256"] == compact
    for silo, models in cell["scores"]["2"].items():
        evaluation = json.loads((tiny.store / "runs" / "first" / "evaluation" / f"{silo}.json").read_text())
        assert next(iter(models)) == evaluation["deployed"]
        assert models == {name: {metric: None if math.isnan(value) else value for metric, value in model["scores"].items()}
                          for name, model in evaluation["models"].items()}, "a study's scores are a run's, operating points included"

    metric, *others = tiny.load().task.scored_by
    assert f"demo · {tiny.load().algorithm.method} · {metric.label}" in output
    assert "became the champion" in output
    report = (tiny.store / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    assert f"Scores: {metric.label} on each silo" in report and all(other.label in report for other in others)
    assert f"{metric.label} after 2 rounds".lower() in (tiny.folder / "study" / "table.md").read_text(encoding="utf-8").lower()


def test_a_finished_run_goes_to_the_registry_and_its_model_is_loaded_by_alias_in_another_process(
    finished: Callable[..., TinyFederation], copied: Copied, processes: Processes, tmp_path: Path,
) -> None:
    original = finished()
    tiny, output = copied(original), (original.folder / "printed.txt").read_text(encoding="utf-8")
    assert output.index("round 2 of 2") < output.index("evaluation and promotion")
    assert "Roll back" not in output and f"fedhelp run {original.path} --set runtime.seed=6" in output  # no champion was there before
    uri = next(line.split("--backend-store-uri ")[1] for line in output.splitlines() if line.startswith("MLflow"))
    program = tmp_path / "load.py"
    program.write_text(
        "import sys, mlflow, numpy\nmlflow.set_tracking_uri(sys.argv[1])\nmodel = mlflow.pyfunc.load_model('models:/tiny@candidate')\n"
        "answers = model.predict(numpy.full((3, 16, 16, 3), 128))\nprint(list(answers.shape), abs(answers.sum(axis=1) - 1).max() < 1e-5)\n",
        encoding="utf-8")
    assert succeeded(processes.start(sys.executable, program, uri)).strip().splitlines()[-1] == "[3, 8] True"
    page = (tiny.store / "runs" / "first" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "registered model" in page and "tiny version 1" in page

    # what the prefetch asked and cost: in MLflow as of round 0, in the report, and its set on demand
    client = client_of(uri)
    metrics = client.search_runs(["1"])[0].data.metrics
    point = json.loads(client.get_model_version_by_alias("tiny", "candidate").tags["fedhelp.operating_point"])
    shares = tiny.run("first").fact(ClassShares).shares
    assert point["rule"] == "prior-corrected" and point["offsets_C"] == [-math.log(share) for share in shares], "the hub fits nothing"
    assert (metrics["soft_labels.images"], metrics["soft_labels.drawn.asked"], metrics["soft_labels.drawn.requests"]) == (12, 12, 1)
    assert metrics["soft_labels.drawn.latency_p95"] > 0
    assert "<td>drawn</td><td class=\"n\">12</td>" in page
    assert "What the teacher sees" in page
    shown = succeeded(processes.fedhelp("softlabels", "show", tiny.path))
    assert "12 public images of 16 x 16 pixels, 5 classes" in shown
    assert "teacher drawn version 1: 100% of every answer" in shown

    assert "version 1 is the champion already; nothing was changed" in succeeded(processes.fedhelp("promote", tiny.path))
    code, clash = ended(processes.fedhelp("run", tiny.path, "--run-id", "first", "--set", "algorithm.rounds=1"))
    assert code == 13 and "round 2" not in clash and "algorithm.rounds: 2 expected, got 1" in clash


def test_a_champion_is_replaced_by_gate_and_by_hand_and_every_command_says_what_that_changed(
    make_tiny: Callable[..., TinyFederation], processes: Processes,
) -> None:
    tiny = make_tiny()

    def said(command: str, *arguments: str) -> str:
        return succeeded(processes.fedhelp(command, tiny.path, *arguments))

    said("run", "--run-id", "first")
    refused = said("run", "--run-id", "second", "--set", "promotion.min_improvement=1.0", "--set", "runtime.seed=6")
    assert "tiny version 2 stays a candidate" in refused and "Roll back" not in refused
    assert "--set promotion.min_improvement=1.0 --set runtime.seed=7" in refused

    override = said("promote")
    assert "champion is now version 2, in place of version 1" in override
    assert "the gate had kept it back: " in override and "at least 1.000 was asked for" in override and f"fedhelp rollback {tiny.path}" in override
    again = said("run", "--run-id", "first")
    first, second = again.splitlines()[:2]
    assert first == "run first was finished before; MLflow is asked what has become of its model"
    assert second.startswith("Nothing was trained; this starts another one: ") and f"fedhelp run {tiny.path} --set runtime.seed=6" in second
    assert "tiny version 1 is not the champion, version 2 is (when the run ended: tiny version 1 became the champion" in again
    assert "champion is again version 1" in said("rollback")

    assert "tiny version 3 has the same weights as the champion, version 1, which stays it" in said("run", "--run-id", "same")
    promoted = said("run", "--run-id", "third", "--set", "runtime.seed=7")  # no better, no worse
    assert "tiny version 4 became the champion" in promoted and f"fedhelp rollback {tiny.path}" in promoted
    assert "Roll back" in said("run", "--run-id", "third", "--set", "runtime.seed=7")
    back = json.loads(said("rollback", "--json"))
    assert (back["model"], back["champion"], back["replaced"]) == ("tiny", "1", "4")
    assert "Roll back" not in said("run", "--run-id", "first")
    nothing = json.loads(said("promote", "--version", "1", "--json"))
    assert nothing["champion"] == nothing["replaced"] == "1" and "nothing was changed" in nothing["said"][0]


@pytest.mark.long
def test_ctrl_c_says_one_sentence_wherever_it_comes(make_tiny: Callable[..., TinyFederation], processes: Processes) -> None:
    tiny = make_tiny(algorithm__rounds=40)
    moments: list[Callable[[], object]] = [
        lambda: any("forkserver" in command for command in processes.alive().values()),
        lambda: (tiny.store / "runs" / "r" / "rounds" / "1" / "commit.json").exists()]
    for moment in moments:
        command = processes.start("setsid", Path(sys.executable).with_name("fedhelp"), "run", tiny.path, "--run-id", "r")
        wait_until(moment, "the moment to stop", 240)
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does
        code, output = ended(command)
        assert code == 130
        assert [line for line in output.splitlines() if not line.startswith("[")] == ["fedhelp run: stopped; the same command goes on where it was"]
        processes.wait_until_gone()
