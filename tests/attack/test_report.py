"""Whatever floats silos send, the report is drawn and the round's metrics are told: every pattern of bits that a document lets in."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator

import pytest

from fedhelp_components.aggregation.__main__ import describe, progress_line, round_metrics
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.protocol.documents import Commit, Moved
from fedhelp_core.report.facts import ReportFacts, RoundReport, SiloFacts, SiloScores
from fedhelp_core.report.page import render_report
from fedhelp_core.report.terminal import render_summary_table
from fedhelp_core.weights.header import WeightsSpec

SHA = "0" * 64
EDGES = (0.0, -0.0, 5e-324, -5e-324, 1e-320, 2.2e-308, 1e-100, 1e100, 1.7976931348623157e308, -1.7976931348623157e308, math.nan, math.inf, -math.inf)


def floats(count: int) -> Iterator[float]:
    """The edges, then any bits."""
    yield from EDGES
    chance = random.Random(7)
    for _ in range(count):
        yield struct.unpack("<d", chance.randbytes(8))[0]


def page(values: list[float], scores: float) -> ReportFacts:
    """A run whose losses are `values` and whose score is `scores`."""
    task = TaskConfig(name="melanoma")
    return ReportFacts(
        run_id="r", federation="f", method="fedhelp", normalisation="shared", silos=(SiloFacts(name="a", kind="small"),), metrics=task.scored_by,
        classes=task.classes, rounds=tuple(
            RoundReport(number=number, participants=("a",), losses={"a": {"private_loss": value}}, seconds=value)
            for number, value in enumerate(values, start=1)),
        scores={"a": SiloScores(models={"proxy": {metric.name: scores for metric in task.scored_by}})})


@pytest.mark.timeout(120)
def test_the_report_is_drawn_from_any_floats(tried: Callable[[], None]) -> None:
    values = list(floats(150))
    for at, value in enumerate(values):
        facts = page([value, values[at - 1], value], value)
        assert render_report(facts).startswith("<!doctype html>")
        render_summary_table(facts)
        tried()


def test_a_round_is_told_with_any_floats(tried: Callable[[], None]) -> None:
    for value in floats(2000):
        if not math.isfinite(value):  # which no document lets in
            continue
        commit = Commit(
            round=1, global_key="g", global_sha256=SHA, spec=WeightsSpec("n", {}), participants=("a",), shares={"a": 1.0},
            metrics={"a": {"loss": value, "samples": 1.0}, "b": {"loss": -value}}, norms={"a": Moved(trainable=abs(value), statistics=0.0)})
        assert round_metrics(commit, 1.0)["participants"] == 1
        assert describe(commit, 2, 1.0) and progress_line(commit, 1.0)
        tried()
