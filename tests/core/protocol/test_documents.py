"""What a silo may send beside weights, and what is refused with the field's name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import ModelScores, SiloEvaluation, SiloReport, SplitSizes, dump, parse
from fedhelp_core.registry.tasks import TASKS
from tests.tiny import DELETE, set_field

SHA = "0123456789abcdef" * 4
EVALUATION = SiloEvaluation(
    silo="brno", kind="large", round=3, global_sha256=SHA, test_samples=4, test_sha256=SHA, deployed="proxy",
    models={"large": ModelScores(scores={"dice": 0.5, "hausdorff95": math.nan}, confusion=[[7, 1], [0, 4]]),
            "proxy": ModelScores(scores={"dice": 0.75, "hausdorff95": 2.5}, confusion=[[8, 0], [0, 4]])})
REPORT = SiloReport(
    silo="brno", samples=SplitSizes(training=12, validation=0, test=4), training_class_counts=[6, 6], test_sha256=SHA, start_sha256=SHA)


def hostile(document: SiloEvaluation | SiloReport, field: str, value: Any) -> bytes:
    """`document` as JSON, `field` replaced or deleted."""
    plain = json.loads(dump(document))
    set_field(plain, field, value)
    return json.dumps(plain).encode()


def test_what_is_written_is_read_back_with_its_undefined_scores() -> None:
    assert parse(SiloReport, dump(REPORT), "key") == REPORT
    found = parse(SiloEvaluation, dump(EVALUATION), "key")
    assert math.isnan(found.models["large"].scores["hausdorff95"])
    assert found.deployed_model == EVALUATION.models["proxy"]
    found.require_scores_of(TASKS["lung-segmentation"].metrics, 2)


@pytest.mark.parametrize(("field", "value"), [
    ("silo", 3), ("kind", "huge"), ("kind", DELETE), ("round", -1), ("round", 2.5), ("global_sha256", SHA[:-1] + "G"), ("test_samples", "4"),
    ("test_sha256", None), ("deployed", "other"), ("deployed", ["proxy"]), ("models", []), ("models.best", {}), ("models.proxy.scores", None),
    ("models.proxy.scores.dice", "high"), ("models.proxy.confusion", {"0": 1}), ("models.proxy.confusion.0", 3), ("models.proxy.confusion.0.0", -1),
    ("models.proxy.confusion.0.0", 1.5), ("models.proxy.confusion.0.0", 2**60), ("models.proxy", "none")])
def test_an_evaluation_of_another_form_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(PermanentError, match=rf"^runs/r/evaluation/brno\.json: {field.split('.')[0]}"):
        parse(SiloEvaluation, hostile(EVALUATION, field, value), "runs/r/evaluation/brno.json")


@pytest.mark.parametrize(("field", "value"), [
    ("samples", DELETE), ("samples.training", "12"), ("samples.training", -1), ("training_class_counts", 12), ("start_sha256", "abc")])
def test_a_report_of_another_form_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(PermanentError, match=rf"^key: {field.split('.')[0]}"):
        parse(SiloReport, hostile(REPORT, field, value), "key")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b'{"silo": ' * 3000, b"[" * 100_000])
def test_what_is_no_document_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(PermanentError, match=r"^key: document: "):
        parse(SiloEvaluation, body, "key")


@pytest.mark.parametrize(("scores", "confusion", "message"), [
    ({"dice": 0.5}, [[1, 0], [0, 1]], r"scores: hausdorff95 expected, got dice"),
    ({"dice": 1.5, "hausdorff95": 0.0}, [[1, 0], [0, 1]], r"scores\.dice: a number from 0 to 1 expected, got 1\.5"),
    ({"dice": -1e308, "hausdorff95": 0.0}, [[1, 0], [0, 1]], r"scores\.dice: .* got -1e\+308"),
    ({"dice": 0.5, "hausdorff95": math.inf}, [[1, 0], [0, 1]], r"scores\.hausdorff95: .* got inf"),
    ({"dice": 0.5, "hausdorff95": 1.0}, [[1, 0]], "confusion: 2 rows of 2 counts expected"),
    ({"dice": 0.5, "hausdorff95": 1.0}, [[1, 0], [0]], "confusion: 2 rows of 2 counts expected")])
def test_scores_that_are_not_of_the_task_are_refused(scores: dict[str, float], confusion: list[list[int]], message: str) -> None:
    evaluation = replace(EVALUATION, models={"proxy": ModelScores(scores=scores, confusion=confusion)})
    with pytest.raises(PermanentError, match=rf"models\.proxy\.{message}"):
        evaluation.require_scores_of(TASKS["lung-segmentation"].metrics, 2)


def test_a_silo_cannot_deploy_what_it_has_not_scored() -> None:
    with pytest.raises(PermanentError, match="deployed: one of proxy models expected, got 'large'"):
        replace(EVALUATION, models={"proxy": EVALUATION.models["proxy"]}, deployed="large").require_scores_of(TASKS["lung-segmentation"].metrics, 2)
