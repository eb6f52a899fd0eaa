"""Dashboard and alert rules speak of metrics that exist, and the rules fire when they should (a real promtool says)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedhelp_core import telemetry
from tests.helm.conftest import HUB

ALERTS = HUB / "files" / "alerts.yaml"
DASHBOARD = HUB / "files" / "dashboards" / "fedhelp.json"
_METRIC = re.compile(r"\bfedhelp_[a-z_]+\b")
_LABELS = re.compile(r"(fedhelp_[a-z_]+)\{([^}]*)\}")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt-get install prometheus)")


def expressions() -> Iterator[str]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every name under which telemetry.py's metrics are stored."""
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", telemetry.exposition(), re.MULTILINE):
        names |= {f"{name}_sum", f"{name}_count", f"{name}_bucket"} if kind == "histogram" else {name}
    return names


def test_every_metric_that_is_asked_for_exists(exposed: set[str]) -> None:
    asked = {name for expression in expressions() for name in _METRIC.findall(expression)}

    assert asked
    assert asked <= exposed


def test_every_kind_of_metric_is_on_the_dashboard(exposed: set[str]) -> None:
    shown = {name for panel in json.loads(DASHBOARD.read_text())["panels"] for t in panel["targets"] for name in _METRIC.findall(t["expr"])}
    families = {re.sub(r"_(sum|count|bucket)$", "", name) for name in exposed} - {"fedhelp_rounds_committed_total"}  # last_committed_round says more

    assert families <= {re.sub(r"_(sum|count|bucket)$", "", name) for name in shown} | {
        name for name in families if name.endswith("_created")}


def test_only_labels_that_metrics_have_are_selected_by() -> None:
    known = {"run", "silo", "phase", "teacher", "outcome"}
    for expression in expressions():
        for _metric, selectors in _LABELS.findall(expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selectors)) <= known, expression


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@promtool
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)

    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yaml"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
