"""Eq 7 against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedhelp_core.algorithm.averaging import average_arrays, shares_of
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.header import Weights


class TestByHand:
    def test_uniform_shares_give_the_mean(self) -> None:
        updates = [{"w": np.array([0, 1, 2], np.float32)}, {"w": np.array([1, 1, 4], np.float32)}, {"w": np.array([2, 4, 0], np.float32)}]
        assert average_arrays(updates, [1 / 3] * 3)["w"].tolist() == [1.0, 2.0, 2.0]

    def test_sample_shares_weigh(self) -> None:
        updates = [{"w": np.array([0, 8], np.float32)}, {"w": np.array([4, 0], np.float32)}]
        assert shares_of([30, 10], "samples") == [0.75, 0.25]
        assert average_arrays(updates, shares_of([30, 10], "samples"))["w"].tolist() == [1.0, 6.0]

    def test_uniform_shares_ignore_samples(self) -> None:
        assert shares_of([30, 10, 5, 5], "uniform") == [0.25] * 4

    def test_integers_and_truth_values_take_the_maximum(self) -> None:
        updates = [{"n": np.array([3, 9]), "b": np.array([False, False])}, {"n": np.array([5, 1]), "b": np.array([True, False])}]
        mean = average_arrays(updates, [0.5, 0.5])
        assert mean["n"].tolist() == [5, 9]
        assert mean["b"].tolist() == [True, False]
        assert mean["n"].dtype == np.int64

    def test_sums_are_in_float64(self) -> None:
        updates = [{"w": np.array([value], np.float32)} for value in (2**24, 1, -(2**24), 1)]
        assert average_arrays(updates, [0.25] * 4)["w"].tolist() == [0.5]  # float32 would lose the first one

    def test_unequal_shares_are_not_rounded_to_float32(self) -> None:
        updates = [{"w": np.array([1.0], np.float32)}, {"w": np.array([-1.0], np.float32)}]
        share = 0.5 + 2**-40
        assert average_arrays(updates, [share, 1 - share])["w"].tolist() == [2**-39]

    def test_one_update_is_its_own_average(self) -> None:
        update = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, np.float16), "n": np.array(7), "empty": np.zeros((0, 2))}
        mean = average_arrays([update], [1.0])
        assert all(mean[name].tobytes() == array.tobytes() and mean[name].shape == array.shape for name, array in update.items())

    def test_equal_updates_stay_what_they_are(self) -> None:
        update = {"w": np.random.default_rng(1).standard_normal(1000, dtype=np.float32)}
        assert average_arrays([update] * 7, [1 / 7] * 7)["w"].tobytes() == update["w"].tobytes()

    def test_inputs_are_left_alone(self) -> None:
        updates = [{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 4.0])}]
        average_arrays(updates, [0.5, 0.5])
        assert updates[0]["w"].tolist() == [1.0, 2.0]


class TestFaults:
    def test_updates_of_different_shapes_are_named(self) -> None:
        updates: list[Weights] = [{"a": np.zeros(2), "w": np.zeros(2)}, {"a": np.zeros(2), "w": np.zeros(3)}]
        with pytest.raises(WeightsError, match="update 2 of 2 differs from the first in tensor 'w'"):
            average_arrays(updates, [0.5, 0.5])

    @pytest.mark.parametrize("shares", [[], [1.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0]])
    def test_shares_that_are_no_shares_are_refused(self, shares: list[float]) -> None:
        with pytest.raises(ValueError, match="averaging"):
            average_arrays([{"w": np.zeros(1)}] * 2, shares)
