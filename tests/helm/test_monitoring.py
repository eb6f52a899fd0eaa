"""Dashboard and alert rules speak of metrics that exist, and the rules fire when they should (a real promtool says)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhelp_core import telemetry
from tests.helm.conftest import HUB, SILO

CHARTS = (HUB, SILO)
ALERTS = {chart: chart / "files" / "alerts.yaml" for chart in CHARTS}
DASHBOARDS = {HUB: HUB / "files" / "dashboards" / "fedhelp.json", SILO: SILO / "files" / "dashboards" / "fedhelp-serving.json"}
_METRIC = re.compile(r"\bfedhelp_[a-z_]+\b")
_LABELS = re.compile(r"(fedhelp_[a-z_]+)\{([^}]*)\}")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt-get install prometheus)")


def expressions() -> Iterator[str]:
    for chart in CHARTS:
        for group in yaml.safe_load(ALERTS[chart].read_text())["groups"]:
            yield from (rule["expr"] for rule in group["rules"])
        for panel in panels(chart):
            yield from (target["expr"] for target in panel["targets"])


def panels(chart: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARDS[chart].read_text())["panels"]
    return found


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every name under which telemetry.py's metrics are stored, those of a served model among them."""
    telemetry._metrics.cache_clear()
    telemetry._serving.cache_clear()
    telemetry.serving_behind(False)
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", telemetry.exposition(), re.MULTILINE):
        names |= {f"{name}_sum", f"{name}_count", f"{name}_bucket"} if kind == "histogram" else {name}
    return names


def test_every_metric_that_is_asked_for_exists(exposed: set[str]) -> None:
    asked = {name for expression in expressions() for name in _METRIC.findall(expression)}

    assert asked
    assert asked <= exposed


def test_every_kind_of_metric_is_on_a_dashboard(exposed: set[str]) -> None:
    shown = {name for chart in CHARTS for panel in panels(chart) for t in panel["targets"] for name in _METRIC.findall(t["expr"])}
    families = {re.sub(r"_(sum|count|bucket)$", "", name) for name in exposed} - {"fedhelp_rounds_committed_total"}  # last_committed_round says more

    assert families <= {re.sub(r"_(sum|count|bucket)$", "", name) for name in shown} | {
        name for name in families if name.endswith("_created")}


def test_only_labels_that_metrics_have_are_selected_by() -> None:
    known = {"federation", "run", "silo", "phase", "teacher", "outcome", "decision", "answer"}
    for expression in expressions():
        for _metric, selectors in _LABELS.findall(expression):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selectors)) <= known, expression


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_panels_do_not_overlap(chart: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(chart):
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
@promtool
def test_promtool_accepts_the_rules(chart: Path) -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS[chart])], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("chart", "file"), [(HUB, "alerts_test.yaml"), (SILO, "serving_alerts_test.yaml")], ids=["hub", "silo"])
@promtool
def test_the_rules_fire_when_they_should(chart: Path, file: str, tmp_path: Path) -> None:
    shutil.copy(ALERTS[chart], tmp_path)
    shutil.copy(Path(__file__).with_name(file), tmp_path)

    done = subprocess.run(["promtool", "test", "rules", file], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_of_the_hub_has_a_paragraph_that_says_what_to_do() -> None:
    page = (HUB.parents[1] / "docs" / "alerts.md").read_text(encoding="utf-8")
    rules = [rule["alert"] for group in yaml.safe_load(ALERTS[HUB].read_text())["groups"] for rule in group["rules"]]
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == rules


def test_every_alert_of_a_served_model_has_its_line_for_whoever_is_called() -> None:
    page = (SILO.parents[1] / "docs" / "ward.md").read_text(encoding="utf-8")
    for group in yaml.safe_load(ALERTS[SILO].read_text())["groups"]:
        for rule in group["rules"]:
            assert f"| `{rule['alert']}` |" in page
