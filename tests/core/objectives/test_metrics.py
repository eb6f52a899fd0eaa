"""Scores of classification: by hand, and against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, roc_auc_score

from fedhelp_core.algorithm.operating_point import prior_corrected
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.objectives.metrics import (
    balanced_accuracy_interval,
    brier_score,
    calibration_error,
    classification_scores,
    mean_interval,
)


def test_calibration_error_is_the_mean_distance_of_confidence_from_accuracy_in_fifteen_equal_bins() -> None:
    labels = np.array([0, 1, 1])
    # 0.82 right, 0.82 wrong: confidence 0.82, accuracy 0.5 in one bin; 0.62 right alone in another
    answers = np.array([[0.82, 0.18], [0.82, 0.18], [0.38, 0.62]])
    assert calibration_error(labels, answers) == pytest.approx(2 / 3 * (0.82 - 0.5) + 1 / 3 * (1 - 0.62))
    assert calibration_error(labels, np.eye(2)[labels]) == 0
    assert calibration_error(np.array([0, 1]), np.full((2, 2), 0.5)) == 0, "no opinion is right half of the time"


def test_a_confidence_on_a_bins_edge_belongs_to_the_bin_below() -> None:
    answers = np.array([[0.75, 0.25], [0.76, 0.24]])  # with four fifteenths to a bin's edge at 0.8, both lie in (11/15, 12/15]
    assert calibration_error(np.array([0, 1]), answers) == pytest.approx(abs(1 - 0.75 - 0.76) / 2)
    assert calibration_error(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(0.5)


def test_brier_score_of_two_classes_is_the_squared_distance_and_of_more_half_of_their_sum() -> None:
    assert brier_score(np.array([1, 0]), np.array([[0.3, 0.7], [0.6, 0.4]])) == pytest.approx((0.3**2 + 0.4**2) / 2)
    assert brier_score(np.array([2]), np.array([[0.2, 0.3, 0.5]])) == pytest.approx((0.2**2 + 0.3**2 + 0.5**2) / 2)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_scikit_learns(classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels, answers = generator.integers(0, classes, 200), generator.dirichlet(np.ones(classes), 200)
    point = prior_corrected(generator.dirichlet(np.ones(classes)), classes=classes)
    found = classification_scores(labels, answers, point)
    decided, calibrated = point.decided(answers), point.calibrated(answers)
    ranked = roc_auc_score(labels, answers[:, 1]) if classes == 2 else roc_auc_score(labels, answers, multi_class="ovr")
    assert found == {
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(labels, decided)), "auroc": pytest.approx(ranked),
        "accuracy": pytest.approx(accuracy_score(labels, decided)),
        "argmax_balanced_accuracy": pytest.approx(balanced_accuracy_score(labels, answers.argmax(axis=1))),
        "ece": calibration_error(labels, calibrated),
        "brier": pytest.approx(brier_score_loss(labels, calibrated, scale_by_half=True))}
    assert tuple(found) == tuple(metric.name for metric in TaskConfig(name="melanoma").scored_by)


def test_without_images_no_score_is_defined() -> None:
    found = classification_scores(np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
    assert all(math.isnan(value) for value in found.values())


def test_an_interval_of_balanced_accuracy_narrows_with_images_and_is_never_certainty() -> None:
    few, many = (balanced_accuracy_interval(np.diag([n, n])) for n in (5, 500))
    assert few[0] < many[0] < 1 and few[1] == 1 and 0.7 < few[0] < 0.95 < many[0]
    assert balanced_accuracy_interval(np.array([[0, 1], [1, 0]]))[0] == 0
    low, high = balanced_accuracy_interval(np.array([[80, 20], [40, 60]]))
    assert low < 0.7 < high and high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 100 + 0.6 * 0.4 / 100) / 2, abs=0.01)
    assert balanced_accuracy_interval(np.array([[80, 20], [0, 0]])) == pytest.approx((0.72, 0.87), abs=0.02), "a class without images has no say"
    assert all(map(math.isnan, balanced_accuracy_interval(np.zeros((2, 2), np.int64))))


def test_an_interval_of_a_mean_holds_it_and_needs_two_images() -> None:
    values = np.array([0.9, 0.8, 0.95, 0.5, 0.85, 0.7])
    low, high = mean_interval(values)
    assert 0.5 < low < values.mean() < high < 0.95
    assert mean_interval(values) == (low, high)
    assert all(map(math.isnan, mean_interval(values[:1])))
