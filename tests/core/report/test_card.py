"""The model card: every section is there, it warns by what the numbers say, names nobody unasked, and takes no markup from a config."""

from __future__ import annotations

import math
from dataclasses import replace

from fedhelp_core.config.card import CardConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.protocol.documents import SplitSizes
from fedhelp_core.protocol.model_record import HospitalScores, Lineage, Parent
from fedhelp_core.report.card import CardFacts, render_card

SHA = "0123456789abcdef" * 4
LINEAGE = Lineage(
    federation_sha256=SHA, distillation_set_sha256="", rounds=50, hospitals=3, training_images=1234, test_images=99, software={"fedhelp": "0.1.0"},
    parent=None)
FACTS = CardFacts(
    name="chest", run="a-run", global_sha256=SHA, task=TaskConfig(name="pneumonia"), network="resnet20", method="fedhelp",
    preprocessing="rgb8, shorter side 32", statistics="averaged", decision="The likeliest class is the answer.", own=CardConfig(),
    class_shares=(0.25, 0.75),
    hospitals=(
        HospitalScores(
            name="brno", scores={"balanced_accuracy": 0.9}, interval=(0.82, 0.95), kind="large",
            images=SplitSizes(training=1000, validation=20, test=40)),
        HospitalScores(name="", scores={"balanced_accuracy": 0.88}), HospitalScores(name="", scores={"balanced_accuracy": 0.5})),
    left_out=0, means={"all_silos_mean": 0.76, "worst_silo": 0.5}, recalls=(0.9, 0.4), public_images=0, teachers=(), lineage=LINEAGE)


def test_a_card_has_every_section_and_the_numbers() -> None:
    text, page = render_card(FACTS)
    for heading in ("What it is", "Intended use", "Data", "Scores", "Known failures", "Licence and contact", "Lineage"):
        assert f"\n## {heading}\n" in text and f"<h2>{heading}</h2>" in page
    assert "**Not a medical device.**" in text and "<strong>Not a medical device.</strong>" in page
    assert "| brno | large | 1,000 | 20 | 40 |" in text and "<td>brno</td>" in page
    assert "| brno | 0.900 | 0.820 to 0.950 |" in text
    assert "| hospital 2, not named | 0.880 |  |" in text and "| hospital 3, not named | 0.500 |  |" in text
    assert "1,234 training and 99 test images of 3 hospitals" in text
    assert "| normal | 25.0% |" in text and SHA in text and "a random start, drawn from the seed" in text
    assert page.startswith("<!doctype html>") and "<script" not in page


def test_it_warns_by_what_the_numbers_say() -> None:
    text, _ = render_card(FACTS)
    assert "The worst hospital has 0.500, the mean is 0.760: yours may be as the worst." in text
    assert "It misses more than it finds of pneumonia (40%)." in text
    calm, _ = render_card(replace(FACTS, hospitals=FACTS.hospitals[:2], recalls=(0.9, 0.8)))
    assert "worst hospital has" not in calm and "misses" not in calm
    unseen, _ = render_card(replace(FACTS, recalls=(0.9, math.nan), left_out=2, statistics="none"))
    assert "No test image shows pneumonia" in unseen and "2 hospitals missed rounds" in unseen
    assert "only hospitals that took part can use it" in unseen


def test_what_the_federation_says_stands_in_it() -> None:
    own = CardConfig(intended_use="Triage of adults.", limits="Fails on portable X-rays.", licence="CC BY 4.0", contact="ml@hub.example")
    text, _ = render_card(replace(FACTS, own=own, lineage=replace(LINEAGE, parent=Parent(sha256=SHA, model="chest", version="3"))))
    assert all(said in text for said in ("Triage of adults.", "Fails on portable X\\-rays.", "CC BY 4.0", "ml@hub.example"))
    assert f"chest version 3, {SHA}" in text


def test_no_markup_of_a_config_passes() -> None:
    evil = "<script>alert(1)</script> [x](javascript:alert(1)) | **bold**\n# heading"
    text, page = render_card(replace(
        FACTS, task=TaskConfig(name="pneumonia", classes=(evil, "b")), own=CardConfig(limits=evil, licence="`code`"), name=evil))
    assert "<script>" not in page and "href=" not in page and "<code>" not in page
    assert page.count("<h1>") == 1 and "\n# heading" not in text


def test_a_mask_is_told_of_its_foreground() -> None:
    lungs = replace(
        FACTS, task=TaskConfig(name="lung-segmentation"), class_shares=(), recalls=(0.3,), hospitals=(
            HospitalScores(name="brno", scores={"dice": 0.9, "hausdorff95": 3.0}, interval=(0.8, 0.95)),), means={"all_silos_mean": 0.9})
    text, _ = render_card(lungs)
    assert "the probability of lung for each pixel" in text and "It misses more than it finds of lung (30%)." in text
    assert "| brno | 0.900 | 0.800 to 0.950 |" in text
