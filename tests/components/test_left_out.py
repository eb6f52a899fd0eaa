"""Who missed rounds or the evaluation: found in the commits, told as a table, and kept where the report finds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedhelp_components.evaluation.__main__ import narrow
from fedhelp_components.evaluation.left_out import silos_left_out
from fedhelp_components.evaluation.report import facts_of_run
from fedhelp_components.left_out.__main__ import run as tell
from fedhelp_components.silo_training.__main__ import run as train
from fedhelp_core.errors import ConfigError
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.facts import LeftOut
from fedhelp_core.report.page import render_report
from fedhelp_core.store.open import open_store
from fedhelp_core.weights.header import WeightsSpec
from tests.tiny import TinyFederation


def committed(number: int, *, absent: dict[str, str] | None = None, refused: dict[str, str] | None = None) -> Commit:
    return Commit(round=number, global_key="k", global_sha256="0" * 64, spec=WeightsSpec(architecture="a", tensors=()), participants=(),
                  absent=absent or {}, refused=refused or {})


def test_a_silo_is_left_out_that_missed_a_round_or_the_evaluation() -> None:
    commits = [
        committed(1, absent={"nord": "no update within 60 s"}), committed(2), committed(3, absent={"nord": "late"}, refused={"sued": "too far"}),
        committed(4, absent={"nord": "out of memory"})]

    found = silos_left_out(commits, {"sued": "no GPU", "west": "no GPU"}, ("ost", "nord", "sued", "west"))

    assert found == {
        "nord": "missed rounds 1, 3 to 4: out of memory", "sued": "missed round 3: refused: too far; not evaluated: no GPU",
        "west": "not evaluated: no GPU"}


def test_who_was_left_out_stands_in_a_table_and_in_the_reports_first_lines(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny(algorithm__method="fedavg")
    federation, run = tiny.load(), tiny.run("r")
    run.freeze(federation.to_yaml())
    run.note(LeftOut({"brno": "missed round 1: it is gone"}))
    run.note(LeftOut({"brno": "missed round 2: [a](http://x)\n| b"}))  # an evaluation that is run again has the last word

    told = tell(store=str(tiny.store), endpoint_url="", run_id="r", silos="brno", reasons_file=str(tiny.folder / "left_out.md"))

    assert told == "left out: brno"
    assert (tiny.folder / "left_out.md").read_text() == (
        "| silo | left out |\n| --- | --- |\n| brno | missed round 2: \\[a\\](http://x) \\| b |\n")
    page = render_report(facts_of_run(open_store(str(tiny.store)), "r", federation))
    assert page.index("Left out: brno: missed round 2") < page.index('class="tiles"')


def test_classes_with_long_names_keep_a_confusion_matrix_narrow() -> None:
    assert narrow(["nevus", "squamous cell carcinoma"]) == ["nevus", "1 squamous …"]


def test_a_node_that_the_graph_has_for_a_silo_of_another_file_ends_well(make_tiny: Callable[..., TinyFederation]) -> None:
    tiny = make_tiny(algorithm__method="fedavg")
    federation = tiny.load()
    tiny.run("r").freeze(federation.to_yaml())
    where = {"store": str(tiny.store), "endpoint_url": "", "run_id": "r", "silo": "zurich"}

    assert train(**where, fixed_node=True) == f"not in this run: its federation.yaml lists {', '.join(federation.silo_names)}"
    with pytest.raises(ConfigError, match="silo 'zurich' is not in run 'r'"):
        train(**where)
