"""`fedhelp open`: the report, or MLflow, in whatever $BROWSER names; an address where there is no browser."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhelp_core.protocol.keys import run_of_report
from fedhelp_core.store.open import open_store
from tests.tiny import Processes, TinyFederation, ended

NO_BROWSER = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


@pytest.fixture
def reported(make_tiny: Callable[..., TinyFederation]) -> TinyFederation:
    """A federation whose store holds the reports of two runs; the second one's last commit is the newer."""
    tiny = make_tiny()
    store = open_store(str(tiny.store))
    for run_id, day in (("older", 2), ("newer", 3), ("b-without-report", 4)):
        run = tiny.run(run_id)
        run.make_real(replace(run.initialise({"weight": np.zeros(1, dtype=np.float32)}, "resnet8"), round=1, created=f"2026-01-0{day}T00:00:00Z",
                              global_key=run.keys.global_model(2, "0" * 64), global_sha256="0" * 64))
        if run_id != "b-without-report":
            store.put(f"runs/{run_id}/report.html", b"<p>" + run_id.encode())
    return tiny


def test_a_report_is_known_by_its_objects_name() -> None:
    assert run_of_report("runs/demo-1/report.html") == "demo-1"
    assert run_of_report("runs/demo-1/card.html") is None
    assert run_of_report("runs/demo-1/x/report.html") is None


@pytest.mark.slow
def test_without_a_browser_the_newest_runs_report_is_printed_as_an_address(reported: TinyFederation, processes: Processes) -> None:
    said = f"file://{reported.store}/runs/newer/report.html"
    code, output = ended(processes.fedhelp("open", reported.folder, **NO_BROWSER))
    assert code == 0 and said in output.split()
    code, output = ended(processes.start(
        "sh", "-c", f"cd {reported.folder} && exec {Path(sys.executable).with_name('fedhelp')} open older", **NO_BROWSER))
    assert code == 0 and said.replace("newer", "older") in output.split()


@pytest.mark.slow
def test_a_browser_gets_the_address_of_the_named_runs_report(reported: TinyFederation, processes: Processes, tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    code, output = ended(processes.fedhelp("open", reported.path, "--run-id", "older", **{**NO_BROWSER, "BROWSER": f"{browser} %s"}))
    assert code == 0, output
    assert seen.read_text().strip() == f"file://{reported.store}/runs/older/report.html"


@pytest.mark.slow
def test_a_run_without_a_report_is_said_so_with_what_to_type(reported: TinyFederation, processes: Processes) -> None:
    code, output = ended(processes.fedhelp("open", reported.path, "--run-id", "b-without-report", **NO_BROWSER))
    assert code == 18
    assert "run 'b-without-report' has no report yet; make one with: fedhelp run" in output


@pytest.mark.slow
def test_mlflow_over_a_file_is_served_until_ctrl_c_and_leaves_no_process(
    reported: TinyFederation, processes: Processes, tmp_path: Path,
) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}.new && mv {seen}.new {seen}\n')
    browser.chmod(0o755)
    process = processes.fedhelp("open", reported.path, "--mlflow", **{**NO_BROWSER, "BROWSER": f"{browser} %s"})
    while not seen.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    assert seen.read_text().startswith("http://127.0.0.1:")
    os.kill(process.pid, signal.SIGINT)
    code, output = ended(process)
    assert code == 130, output
    assert "Traceback" not in output
    processes.wait_until_gone()
