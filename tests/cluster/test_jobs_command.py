"""`fedhelp jobs` on a real API server: every Job with its state, why, and whether a hub still wants it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedhelp_cli.main import main
from fedhelp_core.protocol.lease import Lease
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.remote import RemoteDispatcher
from tests.cluster.control_plane import ControlPlane
from tests.cluster.hospital import Hospital, eventually, federation, hub_account, request_of

pytestmark = pytest.mark.cluster


def rows(*arguments: str) -> dict[str, list[str]]:
    """Silo -> the columns of its row."""
    done = CliRunner().invoke(main, ["jobs", *arguments])
    assert done.exit_code == 0, done.output
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.output.splitlines() if line.strip().startswith("run-")]
    return {line[1]: line for line in lines}


def test_jobs_are_listed_with_state_reason_and_whether_a_hub_still_wants_them(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    account = hub_account(control_plane)
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(account)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    hospitals = {silo: Hospital(control_plane, silo, account) for silo in ("aachen", "bonn", "celle")}
    config = federation(*hospitals.values())
    path = tmp_path / "federation.yaml"
    path.write_text(config.to_yaml())
    folder = str(tmp_path / "store")
    dispatcher = RemoteDispatcher("run-1")
    works: dict[str, Any] = {
        silo: dispatcher.start(replace(request_of(config, "run-1", silo, "train", 3), store_url=folder)) for silo in hospitals}
    for silo, hospital in hospitals.items():
        eventually(lambda silo=silo, hospital=hospital: works[silo].outcome() is None and hospital.jobs())
        hospital.pod()
    hospitals["bonn"].end_pod(11, "fedhelp-worker train: error: split.csv: row 7 has no target")
    eventually(works["bonn"].outcome)
    hospitals["celle"].run_pod()
    eventually(lambda: works["celle"].waiting() is None)
    with Lease(open_store(folder), "run-1", 60.0, silo="aachen"):
        eventually(lambda: rows(str(path))["aachen"][7] == "no")
    found = rows(str(path), "--run-id", "run-1")
    assert found["aachen"][2:6] == [hospitals["aachen"].namespace, "train", "3", "pending"] and "no node can take its pod" in found["aachen"][-1]
    assert found["bonn"][5] == "failed" and found["bonn"][-1] == "split.csv: row 7 has no target"
    assert found["celle"][5] == "running" and found["celle"][7] == "yes", "no hub has ever given a sign for it"
    assert set(rows("-n", hospitals["bonn"].namespace)) == {"bonn"}
    assert rows(str(path), "--run-id", "run-2") == {}
    listed = {job["silo"]: job for job in json.loads(CliRunner().invoke(main, ["jobs", str(path), "--json"]).stdout)["jobs"]}
    assert (listed["bonn"]["state"], listed["bonn"]["reason"]) == ("failed", "split.csv: row 7 has no target")
    dispatcher.close()


def test_who_may_not_list_jobs_everywhere_is_told_so(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig(hub_account(control_plane))))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    done = CliRunner().invoke(main, ["jobs"])
    assert done.exit_code == 14
    assert "may not list jobs" in done.output
