"""What a silo reports is held against the task, its own check and its own counts: evaluations decide about promotion."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedhelp_core.algorithm.operating_point import prior_corrected
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import PermanentError
from fedhelp_core.objectives.metrics import classification_scores, confusion_matrix
from fedhelp_core.protocol.documents import ModelScores, SiloEvaluation, SiloReport, SplitSizes
from fedhelp_core.protocol.report_check import require_credible_evaluation, require_credible_report

SHA, OTHER = "0123456789abcdef" * 4, "f" * 64
PNEUMONIA = TaskConfig(name="pneumonia", image_size=8)
LUNGS = TaskConfig(name="lung-segmentation", image_size=8)
BRAIN = TaskConfig.model_validate(
    {"name": "brain-segmentation", "image_size": 8, "volume": {"spacing": 2.0, "patch_size": 8, "window_size": 8}})
REPORT = SiloReport(
    silo="brno", samples=SplitSizes(training=12, validation=0, test=4), training_class_counts=[7, 5], test_sha256=SHA, start_sha256=SHA)
TRUE = ModelScores(
    scores={"balanced_accuracy": 0.75, "auroc": 0.5, "accuracy": 0.75, "argmax_balanced_accuracy": 0.5, "ece": 0.25, "brier": 0.125},
    confusion=[[1, 1], [0, 2]], argmax_confusion=[[0, 2], [0, 2]], operating_point="prior-corrected")
MASKS = ModelScores(scores={"dice": 0.9, "hausdorff95": 2.5}, confusion=[[200, 6], [0, 50]])


def evaluation(model: ModelScores = TRUE, **changes: Any) -> SiloEvaluation:
    facts: dict[str, Any] = {
        "silo": "brno", "kind": "small", "round": 3, "global_sha256": SHA, "test_samples": 4, "test_sha256": SHA, "deployed": "proxy",
        "models": {"proxy": model}, **changes}
    return SiloEvaluation(**facts)


def test_what_our_own_metrics_give_is_credible_for_any_answers() -> None:
    generator = np.random.default_rng(1)
    for images in range(12):
        labels, answers = generator.integers(0, 2, images), generator.dirichlet((1, 1), images)
        point = prior_corrected(np.array([0.25, 0.75]), classes=2)
        model = ModelScores(
            scores=classification_scores(labels, answers, point), confusion=confusion_matrix(labels, point.decided(answers), 2).tolist(),
            argmax_confusion=confusion_matrix(labels, answers.argmax(axis=1), 2).tolist(), operating_point=point.rule)
        report = replace(REPORT, samples=SplitSizes(training=12, validation=0, test=images))
        require_credible_evaluation(evaluation(model, test_samples=images), report, "small", PNEUMONIA)


@pytest.mark.parametrize(("scores", "message"), [
    ({"balanced_accuracy": 0.76}, r"scores\.balanced_accuracy: 0\.75 expected, which its own confusion matrix gives, got 0\.76"),
    ({"accuracy": 1.0}, r"scores\.accuracy: 0\.75 expected"), ({"accuracy": math.nan}, r"scores\.accuracy: 0\.75 expected"),
    ({"accuracy": 1e-320}, r"scores\.accuracy: 0\.75 expected"),
    ({"auroc": 1.5}, r"scores\.auroc: a number from 0 to 1 expected"), ({"auroc": -1e308}, r"scores\.auroc: .* got -1e\+308"),
    ({"argmax_balanced_accuracy": 0.75}, r"scores\.argmax_balanced_accuracy: 0\.5 expected, which its own confusion matrix gives"),
    ({"ece": 1.5}, r"scores\.ece: a number from 0 to 1 expected"), ({"brier": -0.1}, r"scores\.brier: a number from 0 to 1 expected"),
    ({"sharpe_ratio": 3.0}, r"scores: balanced_accuracy, auroc, accuracy, argmax_balanced_accuracy, ece, brier expected, got ")])
def test_scores_that_the_counts_do_not_give_are_refused(scores: dict[str, float], message: str) -> None:
    with pytest.raises(PermanentError, match=rf"models\.proxy\.{message}"):
        require_credible_evaluation(evaluation(replace(TRUE, scores={**TRUE.scores, **scores})), REPORT, "small", PNEUMONIA)


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "large"}, "kind: 'small' expected, which this silo's check found, got 'large'"),
    ({"test_samples": 5}, "test_samples: 4 expected"), ({"test_sha256": OTHER}, "test_sha256: "),
    ({"deployed": "large"}, "deployed: one of proxy models expected, of a small silo's proxy, got 'large'"),
    ({"models": {"proxy": TRUE, "large": TRUE}}, "deployed: "), ({"models": {}}, "deployed: one of no models")])
def test_an_evaluation_of_other_images_or_another_kind_than_check_found_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        require_credible_evaluation(evaluation(**changes), REPORT, "small", PNEUMONIA)


@pytest.mark.parametrize("confusion", [[], [[4]], [[1, 1], [2]], [[1, 1, 0], [0, 2, 0]], [[1, 1], [0, 3]], [[0, 0], [0, 0]], [[2**53, 0], [0, 2]]])
def test_counts_of_other_classes_or_of_more_images_than_there_are_are_refused(confusion: list[list[int]]) -> None:
    with pytest.raises(PermanentError, match=r"models\.proxy\.confusion: "):
        require_credible_evaluation(evaluation(replace(TRUE, confusion=confusion)), REPORT, "small", PNEUMONIA)


def test_two_models_are_scored_on_the_same_images() -> None:
    other = replace(TRUE, confusion=[[1, 0], [0, 3]], argmax_confusion=[[0, 1], [0, 3]], scores=dict.fromkeys(TRUE.scores, 1.0) | {
        "argmax_balanced_accuracy": 0.5})
    with pytest.raises(PermanentError, match="the same test images of each class expected for every model"):
        require_credible_evaluation(
            evaluation(kind="large", models={"proxy": TRUE, "large": other}), REPORT, "large", PNEUMONIA)


@pytest.mark.parametrize(("changes", "message"), [
    ({"argmax_confusion": []}, r"argmax_confusion: 2 rows of 2 counts expected, got sides of \[0\]"),
    ({"argmax_confusion": [[0, 2], [0, 3]]}, "argmax_confusion: counts of 4 test images expected, 4 in all, got 5"),
    ({"operating_point": "argmax"}, "argmax_confusion: the same as confusion expected where the operating point is argmax")])
def test_counts_at_argmax_stand_beside_those_at_the_operating_point(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PermanentError, match=rf"models\.proxy\.{message}"):
        require_credible_evaluation(evaluation(replace(TRUE, **changes)), REPORT, "small", PNEUMONIA)


@pytest.mark.parametrize("changes", [{"operating_point": "validation"}, {"argmax_confusion": [[200, 6], [0, 50]]}])
def test_masks_have_no_operating_point(changes: dict[str, Any]) -> None:
    with pytest.raises(PermanentError, match=r"models\.proxy\.operating_point: none expected of masks"):
        require_credible_evaluation(evaluation(replace(MASKS, **changes)), REPORT, "small", LUNGS)


@pytest.mark.parametrize(("task", "scores", "message"), [
    (LUNGS, {"dice": 1.5}, r"dice: a number from 0 to 1 expected, got 1\.5"), (LUNGS, {"dice": -0.1}, "dice: "),
    (LUNGS, {"hausdorff95": 11.4}, r"hausdorff95: a number from 0 to 11\.3137 expected, got 11\.4"),
    (LUNGS, {"hausdorff95": -1.0}, "hausdorff95: ")])
def test_masks_are_held_to_what_an_image_of_the_task_can_give(task: TaskConfig, scores: dict[str, float], message: str) -> None:
    require_credible_evaluation(evaluation(replace(MASKS, scores={"dice": math.nan, "hausdorff95": 11.3})), REPORT, "small", task)
    with pytest.raises(PermanentError, match=rf"models\.proxy\.scores\.{message}"):
        require_credible_evaluation(evaluation(replace(MASKS, scores={**MASKS.scores, **scores})), REPORT, "small", task)


def test_pixels_of_volumes_are_counted_too() -> None:
    whole = replace(MASKS, confusion=[[4 * 8**3, 0], [0, 0]])
    require_credible_evaluation(evaluation(whole), REPORT, "small", BRAIN)
    with pytest.raises(PermanentError, match="2048 in all, got 256"):
        require_credible_evaluation(evaluation(MASKS), REPORT, "small", BRAIN)


@pytest.mark.parametrize("counts", [[12], [7, 6], [7, 5, 0], [2**53, 5]])
def test_a_report_whose_classes_are_not_its_images_is_refused(counts: list[int]) -> None:
    require_credible_report(REPORT, PNEUMONIA)
    with pytest.raises(PermanentError, match="training_class_counts: 2 counts that sum to 12 expected"):
        require_credible_report(replace(REPORT, training_class_counts=counts), PNEUMONIA)


@pytest.mark.parametrize("interval", [(0.9, 0.8), (-0.1, 0.5), (0.5, 1.5), (math.nan, 0.5)])
def test_an_interval_of_masks_must_be_two_shares_in_order(interval: tuple[float, float]) -> None:
    report = replace(REPORT, training_class_counts=[768 - 100, 100])

    def evaluation(interval: tuple[float, float]) -> SiloEvaluation:
        return SiloEvaluation(
            silo="brno", kind="small", round=1, global_sha256=SHA, test_samples=4, test_sha256=SHA,
            models={"proxy": replace(MASKS, interval=interval)}, deployed="proxy")

    require_credible_evaluation(evaluation((0.4, 0.6)), report, "small", LUNGS)
    require_credible_evaluation(evaluation((math.nan, math.nan)), report, "small", LUNGS)
    with pytest.raises(PermanentError, match=r"models\.proxy\.interval: of masks two numbers from 0 to 1 in order"):
        require_credible_evaluation(evaluation(interval), report, "small", LUNGS)
