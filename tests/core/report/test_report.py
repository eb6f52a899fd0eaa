"""The report must survive whatever silos send, and say what is missing instead of failing."""

from __future__ import annotations

import html.parser
import io
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.printable import printable
from fedhelp_core.report.charts import nice_ticks, thinned
from fedhelp_core.report.facts import (
    GateFacts,
    PublicExample,
    ReportFacts,
    RoundReport,
    SiloFacts,
    SiloScores,
    SoftLabelFacts,
    StudyFacts,
    TeacherFacts,
)
from fedhelp_core.report.page import render_report
from fedhelp_core.report.terminal import render_summary_table
from fedhelp_core.report.text import number

HOSTILE = "\"><script>alert('x')</script><img src=x onerror=y>\u202e\x1b[31m"


def minimal(**changes: object) -> ReportFacts:
    start: dict[str, object] = {
        "run_id": "run-1", "federation": "demo", "method": "fedhelp", "normalisation": "silo", "metrics": TaskConfig(name="melanoma").scored_by,
        "silos": (
            SiloFacts(name="a", kind="large", training_samples=1200), SiloFacts(name="b", kind="small"), SiloFacts(name="c", kind="small")),
    }
    return ReportFacts(**(start | changes))  # type: ignore[arg-type]


def scored(**values: float) -> dict[str, SiloScores]:
    return {silo: SiloScores(models={"proxy": {"balanced_accuracy": value}}) for silo, value in values.items()}


class _Tags(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def full() -> ReportFacts:
    losses = {"a": {"proxy_loss": 1.5, "large_loss": 1.2}, "b": {"private_loss": 2.0, "public_loss": 0.7}}
    rounds = (
        RoundReport(
            number=1, participants=("a", "b"), absent={"c": HOSTILE}, losses=losses, bytes_up=2_000_000, bytes_down=3_000_000, seconds=2.5),
        RoundReport(number=2, participants=("a",), refused={"b": HOSTILE}, losses={"a": {"proxy_loss": math.nan}}, seconds=3.0),
    )
    scores = {
        "a": SiloScores(
            models={"large": {"balanced_accuracy": 0.8, "auroc": 0.9}, "proxy": {"balanced_accuracy": 0.7}}, confusion=((5, 1), (0, 4))),
        "b": SiloScores(models={"proxy": {"balanced_accuracy": math.nan}}), "c": SiloScores(models={"proxy": {"balanced_accuracy": 0.6}}),
    }
    example = PublicExample(image_HWC=np.zeros((16, 16, 3), dtype=np.uint8), favourites=((HOSTILE, 0.8), ("two", 0.1)))
    soft = SoftLabelFacts(
        sha256="ab" * 32, images=3, classes=10, teachers=("t",), requests=0, entropies=(0.1, 0.2, math.nan), examples=(example,),
        asked=(TeacherFacts(
            name=HOSTILE, asked=2, cached=1, requests=1, retried=3, failed=4, in_doubt=5, cost=1.5, cost_ever=2.25, currency=HOSTILE,
            latency_p50=0.125, latency_p95=0.5),),
        favourites=((HOSTILE, 3, 0.75), ("two", 0, 0.25)), agreements=((HOSTILE, "t", 0.5, 0.125),))
    return minimal(
        rounds=rounds, scores=scores, soft_labels=soft, planned_rounds=2, classes=("x", HOSTILE), parameters={"rounds": 2, "name": HOSTILE},
        final_sha256="cd" * 32, lineage={"config digest": "ef"}, tracking={"model version": HOSTILE},
        gate=GateFacts(decision="kept", reasons=(HOSTILE,)), finished_at="2026-01-02T03:04:05Z")


def test_text_from_silos_never_becomes_markup() -> None:
    page = render_report(full())
    tags = _Tags(page).tags
    assert all(tag != "script" for tag, _ in tags)
    assert all(attributes.get("src", "").startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img")  # type: ignore[union-attr]
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page and "\x1b" not in page


def test_page_loads_nothing_from_elsewhere() -> None:
    page = render_report(full())
    assert not re.search(r"https?:|url\(|@import|<link|srcset", page)


def test_page_shows_scores_missing_values_and_the_gate() -> None:
    page = render_report(full())
    assert "0.800" in page and "0.700" in page  # the large silo's deployed model, and its proxy
    assert "–" in page  # the NaN score
    assert "kept" in page
    assert "finished" in page
    assert "cd" * 32 in page and "ab" * 32 in page


def test_page_shows_what_teachers_were_asked_what_it_cost_and_how_far_they_agree() -> None:
    page = render_report(full())
    for text in ("2.25 ", "0.125 s", "0.500 s", "What the teacher sees", "How sure the teacher is", "How far teachers agree", "50.0%"):
        assert text in page, text


def test_a_run_that_just_started_still_gives_a_page() -> None:
    page = render_report(minimal())
    assert "not evaluated" in page
    assert "No silo has been evaluated" in page
    assert "No round was closed" in page


def test_an_aborted_run_says_why() -> None:
    assert "quorum lost" in render_report(minimal(aborted="quorum lost in round 3"))


def test_one_silo_alone_is_fine() -> None:
    alone = minimal(silos=(SiloFacts(name="a", kind="small"),), scores=scored(a=0.5), rounds=(RoundReport(number=1, participants=("a",)),))
    page = render_report(alone)
    assert "0.500" in page
    assert "Every silo answered every round" in page


def test_hundreds_of_silos_and_rounds_stay_small() -> None:
    names = [f"silo-{i}" for i in range(400)]
    losses = {name: {"private_loss": 1.0} for name in names}
    rounds = tuple(
        RoundReport(number=r, participants=tuple(names[1:]), absent={"silo-0": "x" * 100_000}, losses=losses) for r in range(1, 301))
    facts = minimal(silos=tuple(SiloFacts(name=n, kind="small") for n in names), rounds=rounds, scores=scored(**dict.fromkeys(names, 0.5)))
    assert len(render_report(facts).encode()) < 2**20


def test_page_leaves_out_heavy_sections_when_it_would_be_too_large() -> None:
    facts = full()
    whole = len(render_report(facts).encode())
    page = render_report(facts, max_bytes=whole - 100)
    assert len(page.encode()) < whole
    assert "Left out to keep this page small: soft labels;" in page
    assert "Some public images" not in page


def test_means_leave_out_silos_without_a_score() -> None:
    facts = minimal(scores=scored(a=0.9, b=math.nan, c=0.4))
    assert facts.small_silos_mean() == pytest.approx(0.4)
    assert facts.large_silos_mean() == pytest.approx(0.9)
    assert facts.all_silos_mean() == pytest.approx(0.65)
    assert facts.worst_silo() == ("c", 0.4)


def test_a_large_model_worse_than_the_proxy_is_named_on_page_and_terminal() -> None:
    scores = scored(b=0.5, c=0.6) | {"a": SiloScores(models={"large": {"balanced_accuracy": 0.4}, "proxy": {"balanced_accuracy": 0.7}})}
    facts = minimal(scores=scores)
    out = io.StringIO()
    Console(file=out, width=200).print(render_summary_table(facts))
    assert facts.behind_proxy() == ("a",)
    assert "scores below the global proxy: a." in out.getvalue()
    assert "With 10 validation images (docs/data.md) such a silo deploys the better of the two." in " ".join(out.getvalue().split())
    assert "scores below the global proxy: a." in render_report(facts)
    chosen = replace(facts, silos=tuple(replace(silo, validation_samples=10) for silo in facts.silos))
    assert chosen.behind_proxy() == (), "it chose by its validation images"
    assert full().behind_proxy() == (), "0.8 is better than 0.7, and without a score nothing is said"


def test_a_large_silo_that_deploys_the_proxy_is_said_to_do_so() -> None:
    chosen = SiloScores(models={"proxy": {"balanced_accuracy": 0.7}, "large": {"balanced_accuracy": 0.4}})
    facts = minimal(scores=scored(b=0.5, c=0.6) | {"a": chosen})
    out = io.StringIO()
    Console(file=out, width=200).print(render_summary_table(facts))
    assert facts.deployed("a") == 0.7 and facts.behind_proxy() == ()
    assert "large, deploys the proxy" in out.getvalue()
    assert "large, deploys the proxy" in render_report(facts)


def test_silos_without_an_operating_point_of_their_own_are_named_and_auroc_stands_beside() -> None:
    decided = {
        silo: SiloScores(models={"proxy": {"balanced_accuracy": 0.5, "auroc": auroc}}, operating_point=rule)
        for silo, auroc, rule in (("a", 0.9, "validation"), ("b", 0.875, "prior-corrected"), ("c", 0.625, "validation"))}
    facts = minimal(scores=decided, operating_point="validation", silos=(
        SiloFacts(name="a", kind="large", validation_samples=1200), SiloFacts(name="b", kind="small"), SiloFacts(name="c", kind="small")))
    out = io.StringIO()
    Console(file=out, width=200).print(render_summary_table(facts))
    page = render_report(facts)
    for text in (" ".join(out.getvalue().split()), page):
        assert "Too few validation images for an operating point of their own: b. They decide by how common classes are in training" in text
        assert "AUROC" in text and "0.875" in text and "0.750" in text, "b's, and the small silos' mean"
    assert "validation (1,200 images)" in page and "prior-corrected" in page
    assert "Too few" not in render_report(minimal(scores=decided, operating_point="prior-corrected")), "asked for, not fallen back to"


def test_terminal_table_prints_brackets_as_text() -> None:
    facts = minimal(silos=(SiloFacts(name="[red]a[/red]", kind="small"),), scores=scored(**{"[red]a[/red]": 0.25}))
    out = io.StringIO()
    Console(file=out, width=120).print(render_summary_table(facts))
    assert "[red]a[/red]" in out.getvalue()
    assert "0.250" in out.getvalue()
    assert "worst silo" in out.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.0, 7.0, [0, 2, 4, 6, 8]), (3.0, 3.0, None)])
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, ticks: list[float] | None) -> None:
    found = nice_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert ticks is None or found == ticks


def test_thinning_keeps_both_ends_and_spreads_the_rest_evenly() -> None:
    kept = thinned(1000, 100)
    assert len(kept) == 100
    assert kept[0] == 0 and kept[-1] == 999
    assert {b - a for a, b in itertools.pairwise(kept)} == {10, 11}
    assert thinned(3, 100) == [0, 1, 2]


def test_text_is_shortened_before_it_is_escaped() -> None:
    assert printable("<" * 10, 4) == "<<<…"
    assert printable("a\udcffb") == "a\N{REPLACEMENT CHARACTER}b"
    assert "<li>" + "&lt;" * 599 + "…</li>" in render_report(minimal(gate=GateFacts(decision="kept", reasons=("<" * 1000,))))


def test_number_shows_a_dash_for_what_is_not_a_number() -> None:
    assert [number(v) for v in (0.71249, None, math.nan, math.inf)] == ["0.712", "–", "–", "–"]


def test_scores_of_masks_are_named_and_a_large_distance_is_the_worst() -> None:
    models = {"a": {"dice": 0.9, "hausdorff95": 2.0}, "b": {"dice": 0.4, "hausdorff95": 9.5}}
    scores = {silo: SiloScores(models={"proxy": found}, confusion=((70, 10), (4, 16))) for silo, found in models.items()}
    metrics = TaskConfig(name="lung-segmentation").scored_by
    facts = minimal(metrics=metrics, scores=scores, classes=("background", "lung"))
    page = render_report(facts)
    assert "Scores: Dice on each silo" in page and "Hausdorff 95 (pixels)" in page and "9.500" in page and "0 background" in page
    assert facts.worst_silo() == ("b", 0.4)
    assert minimal(metrics=metrics[::-1], scores=scores).worst_silo() == ("b", 9.5)


def _two_classes(**changes: object) -> ReportFacts:
    point = {"operating_point": "argmax"}
    scores = {
        "a": SiloScores(models={"proxy": {"balanced_accuracy": 0.8}}, confusion=((45, 5), (2, 8)), interval=(0.62, 0.91), **point),  # type: ignore[arg-type]
        "b": SiloScores(models={"proxy": {"balanced_accuracy": 0.7}}, confusion=((9, 1), (2, 3)), **point)}  # type: ignore[arg-type]
    return minimal(scores=scores, classes=("normal", "pneumonia"), **changes)


def _cells(page: str, first: str) -> list[list[str]]:
    """Rows of all tables that begin with `first`."""
    return [cells[1:] for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)
            if (cells := re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)) and cells[0] == first]


def test_of_two_classes_sensitivity_and_specificity_stand_by_silo_with_counts_and_intervals() -> None:
    page = render_report(_two_classes())
    assert "Sensitivity and specificity for pneumonia" in page
    # 8 of 10 found: Wilson's 95% interval is 0.490 to 0.943
    assert ["0.800", "0.490 to 0.943", "8 of 10", "0.900", "0.786 to 0.957", "45 of 50"] in _cells(page, "a")
    assert _cells(page, "all silos")[0][2::3] == ["11 of 15", "54 of 60"]


def test_of_more_classes_each_ones_stand_over_all_silos() -> None:
    scores = {"a": SiloScores(models={"proxy": {}}, confusion=((3, 1, 0), (0, 4, 0), (1, 1, 0)), operating_point="argmax")}
    page = render_report(minimal(scores=scores, classes=("x", "y", "z")))
    assert _cells(page, "x")[0][2::3] == ["3 of 4", "5 of 6"]
    assert _cells(page, "z")[0][2::3] == ["0 of 2", "8 of 8"]


def test_a_score_has_the_interval_that_its_test_images_allow() -> None:
    assert "0.620 to 0.910" in _cells(render_report(_two_classes()), "a")[0]


def test_a_study_of_the_same_settings_puts_training_alone_and_fedavg_beside_the_run() -> None:
    study = StudyFacts(seeds=3, methods={"fedhelp": {"a": 0.7, "b": 0.6, "c": 0.5}, "fedavg": {"a": 0.6, "b": 0.4, "c": 0.2},
                                         "local": {"a": 0.65, "b": 0.2, "c": math.nan}})
    page = render_report(_two_classes(study=study))
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", page)
    assert heads[(at := heads.index("training alone")) - 1:at + 4] == ["silo", "training alone", "FedAvg", "FedHelp", "this run"]
    assert ["0.200", "0.400", "0.600", "0.700"] in _cells(page, "b")
    assert ["0.200", "0.400", "0.600", "0.700"] in _cells(page, "small silos, mean")  # of b: c has no score in two columns
    assert "fedhelp simulate FEDERATION --methods local,fedavg,fedhelp" in render_report(_two_classes())


def test_charts_have_plain_titles_and_the_table_of_rounds_is_linked() -> None:
    page = render_report(replace(full(), rounds_file="rounds.csv"))
    assert "Large hospitals: large model helped by the shared one" in page
    assert not re.search(r"\bEq \d", page)
    assert '<a href="rounds.csv">' in page
