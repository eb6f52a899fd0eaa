"""The study's intervals against values by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.reproduce.intervals import (
    Interval,
    auroc_of_draws,
    balanced_accuracy_of_draws,
    drawn_counts,
    mean_of_draws,
    mean_over,
    percentile_interval,
    seeds_interval,
)


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    counts = drawn_counts(["a", "b", "a", "c"], draws=50)
    assert counts.shape == (50, 4)
    assert np.array_equal(counts[:, 0], counts[:, 2])
    assert np.array_equal(counts[:, [0, 1, 3]].sum(axis=1), np.full(50, 3))


def test_the_same_patients_are_drawn_again():
    assert np.array_equal(drawn_counts(["a", "b", "c"], draws=9, seed=4), drawn_counts(["a", "b", "c"], draws=9, seed=4))


def test_the_auroc_of_a_draw_is_that_of_the_repeated_images():
    generator = np.random.default_rng(1)
    labels = np.array([0, 1, 1, 0, 1, 0])
    positive = np.round(generator.random(6), 1)  # with ties
    counts = drawn_counts(list("abcdef"), draws=40)
    found = auroc_of_draws(labels, np.stack([1 - positive, positive], axis=1), counts)
    for value, times in zip(found, counts, strict=True):
        repeated = np.repeat(labels, times)
        if len(set(repeated)) == 2:
            assert value == pytest.approx(roc_auc_score(repeated, np.repeat(positive, times)))
        else:
            assert np.isnan(value)


def test_balanced_accuracy_is_of_the_classes_in_the_draw():
    labels, decided = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    found = balanced_accuracy_of_draws(labels, decided, np.array([[1, 1, 1, 1], [2, 0, 1, 0], [0, 0, 0, 3]]), 3)
    assert found == pytest.approx([(0.5 + 1 + 0) / 3, 1.0, 0.0])


def test_values_that_are_not_known_are_left_out_of_a_mean():
    assert mean_of_draws(np.array([1.0, np.nan, 3.0]), np.array([[1, 1, 1], [0, 5, 2]])) == pytest.approx([2.0, 3.0])
    assert mean_over({"a": np.array([1.0, np.nan]), "b": np.array([3.0, 5.0])}) == pytest.approx([2.0, 5.0])


def test_an_interval_over_five_seeds_is_students():
    found = seeds_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.high) == pytest.approx((3 - 2.776 * np.sqrt(0.5), 3 + 2.776 * np.sqrt(0.5)))
    assert str(seeds_interval([1.0])) == "–"


def test_an_interval_says_whether_it_excludes_zero():
    assert Interval(0.01, 0.2).excludes_zero
    assert Interval(-0.2, -0.01).excludes_zero
    assert not Interval(-0.01, 0.2).excludes_zero
    assert percentile_interval(np.linspace(0, 1, 1001)) == Interval(pytest.approx(0.025), pytest.approx(0.975))
