"""Scores of several findings against scikit-learn's; what is not labelled is left out, and a hospital may label some alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from fedhelp_core.algorithm.local_update import SiloData, SiloState, UpdateSettings, initial_weights, local_update
from fedhelp_core.algorithm.operating_point import FindingsPoint, operating_point, prior_corrected
from fedhelp_core.config.algorithm import AlgorithmConfig
from fedhelp_core.config.federation import EvaluationConfig, Federation, parse_federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import ConfigError, PermanentError
from fedhelp_core.objectives.metrics import average_precision, findings_scores
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.protocol.documents import ModelScores, SiloEvaluation, SiloReport, SplitSizes
from fedhelp_core.protocol.report_check import require_credible_evaluation, require_credible_report
from fedhelp_core.registry.tasks import NOT_LABELLED

TASK = TaskConfig.model_validate({"name": "chest", "form": "labels", "classes": ["effusion", "mass", "air"], "image_size": 16})
SHA = "0123456789abcdef" * 4


def drawn(images: int = 60) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, (images, 3)).astype(np.uint8)
    probabilities = np.clip(0.4 * labels + rng.integers(0, 7, (images, 3)) / 10, 0, 1).astype(np.float32)  # with ties
    labels[rng.uniform(size=labels.shape) < 0.2] = NOT_LABELLED
    return labels, probabilities


def test_each_score_is_the_mean_of_the_findings_over_the_images_in_which_they_are_labelled() -> None:
    labels, probabilities = drawn()
    scores, of_each, counts = findings_scores(labels, probabilities)
    for number in range(3):
        known = labels[:, number] != NOT_LABELLED
        true, said = labels[known, number], probabilities[known, number]
        assert of_each["auroc"][number] == pytest.approx(roc_auc_score(true, said))
        assert of_each["average_precision"][number] == pytest.approx(average_precision_score(true, said))
        assert of_each["balanced_accuracy"][number] == pytest.approx(balanced_accuracy_score(true, said > 0.5))
        assert of_each["brier"][number] == pytest.approx(float(np.mean((said - true) ** 2)))
        assert counts[number].sum() == known.sum() and counts[number, 2:].sum() == true.sum()
    assert scores == {name: pytest.approx(sum(values) / 3) for name, values in of_each.items()}
    assert tuple(scores) == tuple(metric.name for metric in TASK.scored_by)


def test_a_finding_that_nobody_labelled_or_that_all_images_share_has_no_score_and_counts_in_no_mean() -> None:
    labels, probabilities = drawn()
    labels[:, 0] = NOT_LABELLED
    labels[:, 1] = 1
    scores, of_each, _ = findings_scores(labels, probabilities)
    assert math.isnan(of_each["auroc"][0]) and math.isnan(of_each["auroc"][1])
    assert scores["auroc"] == of_each["auroc"][2]
    assert math.isnan(average_precision(np.zeros(3, np.int64), np.ones(3)))


def test_merits_are_one_less_the_squared_distance_from_what_is_labelled() -> None:
    objective = objective_of(TASK)
    labels = np.array([[1, 0, NOT_LABELLED], [NOT_LABELLED] * 3], np.uint8)
    merits = objective.merits({"labels": labels, "probabilities": np.array([[0.5, 0.2, 0.9], [1, 1, 1]], np.float32)})
    assert merits.tolist() == pytest.approx([1 - (0.25 + 0.04) / 2, 0.0])


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_head_that_a_silo_does_not_label_is_moved_by_weight_decay_alone(kind: str) -> None:
    algorithm = AlgorithmConfig.model_validate({
        "proxy_model": "resnet8", "large_model": "resnet8", "method": "fedhelp-no-api", "rank_top_k": 1, "augmentation": "mirror",
        "optimizer": {"weight_decay": 0.0}})
    objective = objective_of(TASK)
    settings = UpdateSettings(algorithm=algorithm, objective=objective, seed=1, silo="a", kind=kind)
    weights = initial_weights(algorithm, objective, seed=1)
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, (8, 3)).astype(np.uint8))
    labels[:, 1] = NOT_LABELLED
    data = SiloData(images_NCHW=torch.from_numpy(rng.integers(0, 256, (8, 3, 16, 16), np.uint8)), labels_N=labels)
    found = local_update(weights, SiloState.empty(), data, settings, round_number=1).weights["head.weight"]
    moved = np.abs(found - weights["head.weight"]).sum(axis=1) > 0
    assert moved.tolist() == [True, False, True]


def test_each_finding_is_decided_where_its_validation_images_say_and_counted_there() -> None:
    """Of the first finding there are images enough; the second nobody labels; of the third all validation images are without it."""
    rng = np.random.default_rng(5)
    objective = objective_of(TASK)
    labels = np.stack([rng.uniform(size=80) < 0.1, np.full(80, NOT_LABELLED), np.zeros(80)], axis=1).astype(np.uint8)
    said = np.clip(0.05 + 0.2 * (labels == 1) + 0.1 * rng.uniform(size=labels.shape), 0, 1).astype(np.float32)
    results = {"labels": labels, "probabilities": said}
    of_each = zip(
        objective.learnt_shares([0.1, 0.0, 0.2]), objective.counts_of_decisions(torch.from_numpy(labels)), objective.decisions(results), strict=True)
    point = objective.point_of([
        operating_point(EvaluationConfig(), shares_C=shares, counts_C=counts, labels_N=true, probabilities_NC=answers)
        for shares, counts, (true, answers) in of_each])
    assert isinstance(point, FindingsPoint) and [one.rule for one in point.of_each] == ["validation", "prior-corrected", "prior-corrected"]
    at_half, at_point = objective.scores_of(results), objective.scores_of(results, point)
    assert at_half.of_each["balanced_accuracy"][0] == 0.5 and at_point.of_each["balanced_accuracy"][0] == 1.0
    assert at_half.confusion_CC[0].tolist() == [71, 0, 9, 0] and at_point.confusion_CC[0].tolist() == [71, 0, 0, 9]
    assert at_point.scores["auroc"] == at_half.scores["auroc"] and at_point.confusion_CC[1].sum() == 0


def test_the_model_for_users_has_the_points_decision_at_a_half() -> None:
    point = FindingsPoint(of_each=tuple(prior_corrected(np.array([1 - share, share]), classes=2) for share in (0.1, 0.5, 0.9)))
    objective = objective_of(TASK)
    network = objective.build("resnet8", torch.Generator().manual_seed(1)).eval()
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own = np.concatenate([objective.served(network)(image.float()).numpy() for image in images.split(1)])
        served = np.concatenate([objective.served(network, point)(image.float()).numpy() for image in images.split(1)])
    assert np.array_equal(own, objective.probabilities(network, images, torch.device("cpu")).numpy())
    assert ((served > 0.5) == point.decided(own)).all() and (served[:, 0] > own[:, 0]).all() and (served[:, 2] < own[:, 2]).all()


def federation(**silo: Any) -> Federation:
    return parse_federation({
        "name": "test", "task": TASK.model_dump(mode="json"), "algorithm": {"method": "fedavg"}, "store": {"url": "store"},
        "silos": [{"name": "a", "dispatch": {"silo_config": "a.yaml"}, **silo}]}, source="test")


def test_a_silo_says_which_findings_it_labels() -> None:
    assert federation(labelled=["mass"]).labelled_by("a") == (False, True, False)
    assert federation().labelled_by("a") is None and "labelled" not in federation().to_yaml()
    with pytest.raises(ConfigError, match=r"silos.0 \('a'\).labelled: one of effusion, mass, air expected, got 'mas'; did you mean 'mass'\?"):
        federation(labelled=["mas"])
    with pytest.raises(ConfigError, match="at least one finding expected"):
        federation(labelled=[])


def scored() -> ModelScores:
    labels, probabilities = drawn()
    scores, of_each, counts = findings_scores(labels, probabilities)
    return ModelScores(scores=scores, confusion=counts.tolist(), of_each=of_each)


def evaluation(model: ModelScores) -> SiloEvaluation:
    return SiloEvaluation(
        silo="a", kind="small", round=2, global_sha256=SHA, test_samples=60, test_sha256=SHA, models={"proxy": model}, deployed="proxy")


REPORT = SiloReport(
    silo="a", samples=SplitSizes(training=8, validation=0, test=60), training_class_counts=[3, 8, 0], training_labelled_counts=[8, 8, 4],
    test_sha256=SHA, start_sha256=SHA)


def test_what_a_silo_reports_of_findings_is_held_against_itself() -> None:
    require_credible_report(REPORT, TASK)
    require_credible_evaluation(evaluation(scored()), REPORT, "small", TASK)
    with pytest.raises(PermanentError, match="3 counts of at most 8 expected"):
        require_credible_report(replace(REPORT, training_class_counts=[3, 9, 0]), TASK)
    with pytest.raises(PermanentError, match="training_labelled_counts: 3 counts of at most 8 expected, got 0"):
        require_credible_report(replace(REPORT, training_labelled_counts=[]), TASK)
    with pytest.raises(PermanentError, match="training_class_counts: at most as many images with a finding as are labelled for it"):
        require_credible_report(replace(REPORT, training_class_counts=[3, 8, 5]), TASK)


@pytest.mark.parametrize(("changes", "words"), [
    ({"scores": {**scored().scores, "balanced_accuracy": 1.0}}, "balanced_accuracy"),
    ({"scores": {**scored().scores, "auroc": 0.99}}, "of_each.auroc: values with mean 0.99"),
    ({"scores": {"auroc": 0.5}}, "auroc, average_precision, balanced_accuracy, brier expected"),
    ({"confusion": [[1, 2, 3]]}, "3 rows of 4 counts of 60 test images"),
    ({"confusion": [[60, 1, 0, 0]] * 3}, "3 rows of 4 counts of 60 test images"),
    ({"of_each": {}}, "of_each: auroc"),
    ({"of_each": {**scored().of_each, "auroc": [0.5, 0.5]}}, "of_each.auroc: 3 numbers from 0 to 1"),
    ({"of_each": {**scored().of_each, "auroc": [0.5, 0.5, 7.0]}}, "of_each.auroc: 3 numbers from 0 to 1"),
    ({"argmax_confusion": [[60, 0, 0, 0]] * 3}, "argmax_confusion: none expected of labels"),
    ({"interval": (0.1, 0.2)}, "interval"),
])
def test_a_forged_evaluation_of_findings_names_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PermanentError, match=words):
        require_credible_evaluation(evaluation(replace(scored(), **changes)), REPORT, "small", TASK)
