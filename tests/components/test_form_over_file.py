"""A run's form wins over the federation's file, and check says in its log what it replaced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedhelp_components.check import __main__ as check_main
from tests.tiny import TinyFederation


def test_what_the_form_replaces_is_said(make_tiny: Callable[..., TinyFederation], capsys: pytest.CaptureFixture[str]) -> None:
    tiny = make_tiny(algorithm__method="fedavg")
    check_main.run(federation=str(tiny.path), run_id="r", settings={
        "protocol.min_silos": 1, "algorithm.rounds": 2, "algorithm.optimizer.learning_rate": 0.01, "silos.0.kind": "large"})
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("the run's form ")[2] for line in said if "the run's form " in line] == [
        "replaces protocol.min_silos: 1 instead of the file's 3", "replaces algorithm.optimizer.learning_rate: 0.01 instead of the file's 0.001",
        "replaces silos.0.kind: 'large' instead of the file's 'auto'"]
