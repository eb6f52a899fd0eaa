"""How answers become decisions and probabilities: numbers worked out by hand, and fits held against another optimizer's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize

from fedhelp_core.algorithm.class_shares import pooled_findings, pooled_shares, prior_of, shares_of_classes, shares_of_finding
from fedhelp_core.algorithm.operating_point import FindingsPoint, OperatingPoint, both_of, fitted, likeliest, operating_point, prior_corrected
from fedhelp_core.config.federation import EvaluationConfig

Floats = npt.NDArray[np.float64]
SKEWED = np.array([0.25, 0.75])
EVEN = prior_corrected(None, classes=2)
NO_LABELS, NO_ANSWERS = np.zeros(0, np.int64), np.zeros((0, 2), np.float32)


def hospital(images: int, share: float, *, seed: int = 1, sureness: float = 1.0, bias: float = 0.0) -> tuple[npt.NDArray[np.int64], Floats]:
    """Labels, and answers of a model that knows p(x | y) of two normal distributions, but is too sure and leans to one side."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(images) < share).astype(np.int64)
    evidence = 1.5 * (generator.normal(size=images) + 1.5 * labels) - 1.5**2 / 2
    log_odds = sureness * evidence + bias
    return labels, np.stack([1 / (1 + np.exp(log_odds)), 1 / (1 + np.exp(-log_odds))], axis=1)


def balanced_accuracy(point: OperatingPoint, labels: npt.NDArray[np.int64], answers: Floats) -> float:
    decided = point.decided(answers)
    return float(np.mean([(decided[labels == label] == label).mean() for label in (0, 1)]))


def test_class_frequencies_by_hand() -> None:
    assert prior_of([3, 1]).tolist() == pytest.approx([3.5 / 5, 1.5 / 5])
    assert prior_of([4, 0]).tolist() == pytest.approx([4.5 / 5, 0.5 / 5])
    assert shares_of_classes([3, 1]).tolist() == [0.75, 0.25]
    assert shares_of_classes([3, 0, 1]).tolist() == [0.75, 0.75, 0.25], "a class without an image is never favoured"
    assert len(set(shares_of_classes([0, 0]).tolist())) == 1 and prior_of([0, 0]).tolist() == [0.5, 0.5], "a hospital that trains nothing"
    assert pooled_shares([[3, 1], [0, 4]], [0.5, 0.5]).tolist() == [0.375, 0.625]
    assert pooled_shares([[3, 1], [0, 4]], [0.75, 0.25]).tolist() == [0.5625, 0.4375]
    assert pooled_shares([[3, 1, 0]], [1.0]).tolist() == [0.75, 0.25, 0.75]


def test_argmax_is_the_models_own_word() -> None:
    answers = np.array([[0.5, 0.5], [0.4, 0.6], [0.7, 0.3]], np.float32)
    assert likeliest(2).decided(answers).tolist() == answers.argmax(axis=1).tolist() == [0, 1, 0]
    np.testing.assert_allclose(likeliest(2).calibrated(answers), answers, rtol=1e-6)


def test_prior_correction_moves_the_threshold_to_how_common_the_class_was_in_training() -> None:
    point = prior_corrected(SKEWED, classes=2)
    answers = np.array([[0.26, 0.74], [0.24, 0.76], [0.4, 0.6]])
    assert point.decided(answers).tolist() == [0, 1, 0]  # 0.75, not 0.5
    assert likeliest(2).decided(answers).tolist() == [1, 1, 1]


def test_a_model_that_knows_no_frequencies_gets_the_hospitals_own_for_its_probabilities_and_none_for_its_decisions() -> None:
    point = prior_corrected(None, classes=2, counts_C=[3, 1])
    answers = np.array([[0.5, 0.5], [0.3, 0.7]])
    np.testing.assert_allclose(point.calibrated(answers), [[0.7, 0.3], [0.5, 0.5]])  # 0.3 * 0.7 against 0.7 * 0.3
    assert point.decided(answers).tolist() == [0, 1]


def test_a_model_of_others_frequencies_is_brought_to_the_hospitals_own() -> None:
    point = prior_corrected(SKEWED, classes=2, counts_C=[4, 4])
    np.testing.assert_allclose(point.calibrated(np.array([[0.25, 0.75], [0.5, 0.5]])), [[0.5, 0.5], [0.75, 0.25]])


def test_a_model_that_was_trained_where_one_class_is_missing_is_not_corrected_for_it() -> None:
    point = prior_corrected(shares_of_classes([0, 16]), classes=2, counts_C=[0, 16])
    assert point.offsets_C[0] == point.offsets_C[1]
    assert point.decided(np.array([[0.75, 0.25], [0.7, 0.3]])).tolist() == [0, 1], "odds of e to the 0.93 are needed, as the class was never seen"


def test_an_answer_of_zero_is_taken() -> None:
    answers = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    point = prior_corrected(SKEWED, classes=2, counts_C=[1, 3])
    assert point.decided(answers).tolist() == [1, 0] and np.isfinite(point.calibrated(answers)).all()


@pytest.mark.parametrize("images", [10, 40, 400])
@pytest.mark.parametrize("start", [EVEN, prior_corrected(SKEWED, classes=2)])
def test_the_fit_is_the_likeliest_temperature_and_offsets_under_a_normal_prior(images: int, start: OperatingPoint) -> None:
    labels, answers = hospital(images, 0.7, sureness=2.5, bias=1.0)

    def cost(at: Floats) -> float:
        logits = np.log(answers) * math.exp(-at[0]) + start.offsets_C + at[1:] + np.log(np.bincount(labels) / images)
        likelihood = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(images), labels].sum()
        return float((at[0] / 0.5) ** 2 / 2 + (at[1:] ** 2).sum() / 2 - likelihood)

    expected = minimize(cost, np.zeros(3), tol=1e-12).x
    point = fitted(start, labels, answers)
    assert point.rule == "validation" and point.log_prior_C == start.log_prior_C
    assert math.log(point.temperature) == pytest.approx(expected[0], abs=1e-4)
    assert np.array(point.offsets_C) - start.offsets_C == pytest.approx(expected[1:], abs=1e-4)


def test_many_images_find_how_sure_and_how_biased_a_model_is_whatever_their_classes_frequencies() -> None:
    for share in (0.5, 0.8):
        point = fitted(EVEN, *hospital(4000, share, sureness=2.5, bias=1.0))
        assert point.temperature == pytest.approx(2.5, rel=0.15)
        assert point.offsets_C[1] - point.offsets_C[0] == pytest.approx(-1.0 / 2.5, abs=0.15)


def test_few_images_move_the_threshold_little_and_never_far() -> None:
    """Ten images of a perfect model, all of them sure and right: nothing tells that it is not."""
    labels = np.array([0, 1] * 5)
    point = fitted(EVEN, labels, np.eye(2)[labels])
    assert 0.3 < point.temperature <= 1.0 and abs(point.offsets_C[0] - point.offsets_C[1]) < 1e-6
    wrong = fitted(EVEN, labels, np.eye(2)[1 - labels])
    assert wrong.temperature > 0 and np.isfinite(wrong.offsets_C).all()


def test_a_fit_gains_on_other_images_even_with_ten_of_them() -> None:
    test = hospital(20_000, 0.75, seed=99, sureness=2.5, bias=2.0)
    start = balanced_accuracy(EVEN, *test)
    for images, least in ((10, 0.01), (40, 0.02)):
        gained = [balanced_accuracy(fitted(EVEN, *hospital(images, 0.75, seed=seed, sureness=2.5, bias=2.0)), *test) for seed in range(30)]
        assert np.mean(gained) > start + least


def test_with_images_of_one_class_there_is_nothing_to_fit() -> None:
    assert fitted(EVEN, np.ones(20, np.int64), np.full((20, 2), 0.5)) == EVEN


def test_a_class_that_no_validation_image_shows_keeps_its_offset() -> None:
    start = prior_corrected(np.array([0.5, 0.25, 0.25]), classes=3)
    labels = np.array([0, 1] * 20)
    answers = np.array([[0.2, 0.6, 0.2], [0.1, 0.8, 0.1]] * 20)
    point = fitted(start, labels, answers)
    assert point.offsets_C[2] == start.offsets_C[2] == pytest.approx(math.log(4))
    assert point.offsets_C[0] > start.offsets_C[0] and point.offsets_C[1] < start.offsets_C[1]


@pytest.mark.parametrize(("wanted", "images", "rule"), [
    ({}, 10, "validation"), ({}, 9, "prior-corrected"), ({}, 0, "prior-corrected"), ({"min_validation_images": 40}, 39, "prior-corrected"),
    ({"min_validation_images": 2}, 2, "validation"), ({"operating_point": "prior-corrected"}, 100, "prior-corrected"),
    ({"operating_point": "argmax"}, 100, "argmax")])
def test_the_federation_says_where_a_point_comes_from_and_too_few_images_give_prior_correction(
    wanted: dict[str, object], images: int, rule: str,
) -> None:
    labels, answers = np.arange(images) % 2, np.full((images, 2), 0.5)
    point = operating_point(EvaluationConfig.model_validate(wanted), shares_C=SKEWED, counts_C=[1, 3], labels_N=labels, probabilities_NC=answers)
    assert point.rule == rule
    if rule != "argmax":
        assert point.log_prior_C == pytest.approx(np.log([1.5 / 5, 3.5 / 5]))


def test_the_same_images_give_the_same_bits() -> None:
    labels, answers = hospital(50, 0.7, sureness=2.0)
    assert fitted(EVEN, labels, answers) == fitted(EVEN, labels, answers)


def test_a_class_that_the_hospital_never_saw_has_to_be_far_likelier_and_one_that_it_often_sees_does_not() -> None:
    counts = [30, 0, 10, 0]
    point = prior_corrected(None, classes=4, counts_C=counts)
    never = 1 - (1 - 0.25 / 41) ** 40
    assert np.exp(point.log_occurrence_C) == pytest.approx([1, never, 1, never], abs=1e-4)
    assert never == pytest.approx(1 - math.exp(-1 / 4), rel=0.02), "the same for any number of images"
    barely, clearly = [0.15, 0.5, 0.2, 0.15], [0.1, 0.1, 0.1, 0.7]
    assert point.decided(np.array([barely, clearly])).tolist() == [2, 3]
    assert point.calibrated(np.array([barely])).argmax() == 0, "probabilities are of the hospital's frequencies, and not discounted twice"


def test_without_counts_every_class_is_taken_to_occur() -> None:
    for point in (prior_corrected(SKEWED, classes=2), prior_corrected(SKEWED, classes=2, counts_C=[0, 0]), likeliest(2)):
        assert point.log_occurrence_C == (0.0, 0.0)


def test_how_common_findings_are_is_the_mean_over_the_hospitals_that_label_them() -> None:
    counts = [[[3, 1], [0, 0]], [[1, 1], [9, 1]], [[0, 0], [0, 0]]]
    assert pooled_findings(counts, [0.5, 0.25, 0.25]).tolist() == pytest.approx([(0.5 * 0.25 + 0.25 * 0.5) / 0.75, 0.1])
    assert pooled_findings([[[0, 0]]], [1.0]).tolist() == [0.0]
    assert shares_of_finding(0.1).tolist() == pytest.approx([0.9, 0.1])
    assert shares_of_finding(0.0).tolist() == [1.0, 1.0] == shares_of_finding(1.0).tolist(), "nobody can tell, so nothing is favoured"


def test_each_finding_is_a_decision_of_its_own() -> None:
    labels, answers = hospital(400, 0.1, bias=-2.0)
    rare = operating_point(
        EvaluationConfig(), shares_C=np.array([0.9, 0.1]), counts_C=(360, 40), labels_N=labels, probabilities_NC=both_of(answers[:, 1]))
    few = operating_point(
        EvaluationConfig(), shares_C=np.array([0.9, 0.1]), counts_C=(360, 40), labels_N=labels[:9], probabilities_NC=both_of(answers[:9, 1]))
    point = FindingsPoint(of_each=(rare, few, likeliest(2)))
    said_NK = np.stack([answers[:, 1]] * 3, axis=1)
    decided_NK = point.decided(said_NK)
    assert (rare.rule, few.rule, point.rule) == ("validation", "prior-corrected", "validation")
    assert FindingsPoint(of_each=(few, few)).rule == "prior-corrected"
    assert decided_NK[:, 0].tolist() == (rare.decided(both_of(said_NK[:, 0])) == 1).tolist()
    assert decided_NK[:, 1].tolist() == (said_NK[:, 1] > 0.1).tolist()
    assert decided_NK[:, 2].tolist() == (said_NK[:, 2] > 0.5).tolist()
    found = [decided_NK[labels == 1, number].mean() for number in range(3)]
    assert found[0] > 0.7 > 0.3 > found[2], "at a half a rare finding is hardly ever named"
    np.testing.assert_allclose(point.calibrated(said_NK)[:, 2], said_NK[:, 2], rtol=1e-9)
    assert ((point.equally_common(said_NK) > 0.5) == decided_NK).all()
