"""FedAvgM, FedAdam, FedYogi and FedNova against loops over Python's own floats, number by number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fedhelp_core.algorithm.averaging import Rule, average_arrays, rule_of
from fedhelp_core.algorithm.fednova import equivalent_steps
from fedhelp_core.algorithm.server import Answers, Part, next_round
from fedhelp_core.config.algorithm import AlgorithmConfig, OptimizerConfig, ServerOptimizerConfig
from fedhelp_core.weights.header import Weights

START: Weights = {
    "conv.weight": np.array([1.0, -2.0, 0.5], np.float32), "norm.running_mean": np.array([0.5], np.float32),
    "norm.running_var": np.array([0.01], np.float32), "norm.num_batches_tracked": np.array(4)}
CHANGES = ([0.5, -0.001, 0.0], [0.25, 0.002, -1e-5], [-0.5, 0.001, 3.0])  # of the average, round by round


def updates_for(model: Weights, change: Sequence[float]) -> list[Weights]:
    """Two that move the weights by `change` on average, and by as much again in opposite directions."""
    def one(sign: int, counter: int) -> Weights:
        return {
            "conv.weight": (model["conv.weight"] + np.asarray(change) + sign * np.array([0.25, 0.5, 1.0])).astype(np.float32),
            "norm.running_mean": model["norm.running_mean"] + np.float32(sign), "norm.running_var": model["norm.running_var"] * np.float32(0.5),
            "norm.num_batches_tracked": np.array(counter)}

    return [one(1, 9), one(-1, 7)]


def answers(shares: Sequence[float] = (0.5, 0.5), steps: Sequence[int] = (5, 5)) -> Answers:
    return Answers(shares=shares, standing=shares, steps=steps)


def rounds(rule: Rule) -> list[tuple[Weights, dict[Part, Weights]]]:
    """Three rounds, each from what the last one left."""
    model, remembered, found = START, dict[Part, Weights](), []
    for change in CHANGES:
        model, remembered = next_round(rule, answers(), model, remembered, updates_for(model, change))
        found.append((model, remembered))
    return found


def by_hand(kind: str, rate: float, beta1: float, beta2: float, tau: float) -> list[list[float]]:
    """The three weights after each round, one by one, as the papers have it."""
    found = []
    weights, momenta, squares = [1.0, -2.0, 0.5], [0.0] * 3, [tau**2] * 3
    for change in CHANGES:
        for i, delta in enumerate(change):
            if kind == "momentum":
                momenta[i] = beta1 * momenta[i] + delta
                weights[i] += rate * momenta[i]
                continue
            momenta[i] = beta1 * momenta[i] + (1 - beta1) * delta
            if kind == "adam":
                squares[i] = beta2 * squares[i] + (1 - beta2) * delta**2
            else:
                squares[i] -= (1 - beta2) * delta**2 * math.copysign(1, squares[i] - delta**2)
            weights[i] += rate * momenta[i] / (math.sqrt(squares[i]) + tau)
        found.append(list(weights))
    return found


@pytest.mark.parametrize(("kind", "rate", "beta1", "beta2", "tau"), [
    ("momentum", 1.0, 0.9, 0.99, 1e-3), ("momentum", 0.3, 0.0, 0.99, 1e-3), ("adam", 0.01, 0.9, 0.99, 1e-3), ("adam", 0.1, 0.5, 0.9, 0.05),
    ("yogi", 0.01, 0.9, 0.99, 1e-3), ("yogi", 0.1, 0.0, 0.5, 0.1)])
def test_the_hubs_optimizer_moves_each_weight_as_the_paper_has_it(kind, rate, beta1, beta2, tau):  # type: ignore[no-untyped-def]
    rule = Rule(optimizer=ServerOptimizerConfig(kind=kind, learning_rate=rate, beta1=beta1, beta2=beta2, tau=tau))
    for (model, _), expected in zip(rounds(rule), by_hand(kind, rate, beta1, beta2, tau), strict=True):
        assert model["conv.weight"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_what_batch_norms_count_is_averaged_and_not_optimised(kind: str) -> None:
    rule = Rule(optimizer=ServerOptimizerConfig.model_validate({"kind": kind, "learning_rate": 10.0}))
    model = START
    for change, (found, remembered) in zip(CHANGES, rounds(rule), strict=True):
        expected = average_arrays(updates_for(model, change), [0.5, 0.5])
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            assert np.array_equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype
            assert all(not part[name].any() for part in remembered.values())
        model = found
    assert 0 < model["norm.running_var"][0] < 0.01, "steps beyond the average would have made it negative"


def test_without_an_optimizer_of_its_own_the_hub_remembers_nothing_and_takes_the_average() -> None:
    model, remembered = next_round(Rule(), answers((0.25, 0.75)), START, {}, updates_for(START, CHANGES[0]))
    expected = average_arrays(updates_for(START, CHANGES[0]), [0.25, 0.75])
    assert remembered == {} and all(model[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_momentum_of_zero_and_a_rate_of_one_are_the_average() -> None:
    rule = Rule(optimizer=ServerOptimizerConfig(kind="momentum", beta1=0.0))
    model, _ = next_round(rule, answers(), START, {}, updates_for(START, CHANGES[0]))
    assert model["conv.weight"] == pytest.approx(average_arrays(updates_for(START, CHANGES[0]), [0.5, 0.5])["conv.weight"], abs=1e-6)


def test_the_hubs_optimizer_takes_its_direction_from_the_aggregation() -> None:
    updates = [{"w": np.array([value], np.float32)} for value in (1.0, 2.0, 90.0)]
    rule = Rule("median", optimizer=ServerOptimizerConfig(kind="momentum", learning_rate=0.5))
    model, _ = next_round(rule, answers([1 / 3] * 3, [1] * 3), {"w": np.array([1.0], np.float32)}, {}, updates)
    assert model["w"].tolist() == [1.5]


def test_the_largest_numbers_of_a_float32_leave_finite_state_behind() -> None:
    updates = [{"w": np.array([3e38], np.float32)}]
    for kind in ("adam", "yogi"):
        rule = Rule(optimizer=ServerOptimizerConfig.model_validate({"kind": kind}))
        model, remembered = next_round(rule, answers([1.0], [1]), {"w": np.zeros(1, np.float32)}, {}, updates)
        assert np.isfinite(model["w"]).all() and all(np.isfinite(part["w"]).all() for part in remembered.values())


class TestFedNova:
    def test_by_hand(self) -> None:
        updates = [{"w": np.array([11.0, 1.0])}, {"w": np.array([16.0, 4.0])}]
        model, _ = next_round(Rule("fednova"), answers((0.25, 0.75), (1, 3)), {"w": np.array([10.0, 1.0])}, {}, updates)
        # changes in a step: (1, 0) and (2, 1); their mean is (1.75, 0.75), and a round has 0.25 * 1 + 0.75 * 3 = 2.5 steps
        assert model["w"].tolist() == pytest.approx([10 + 1.75 * 2.5, 1 + 0.75 * 2.5])

    def test_silos_with_the_same_gradient_agree_however_many_steps_they_take(self) -> None:
        start, gradient = np.array([3.0, -1.0]), np.array([0.5, 0.25])
        updates = [{"w": start - steps * gradient} for steps in (1, 4, 10)]
        model, _ = next_round(Rule("fednova"), answers([1 / 3] * 3, (1, 4, 10)), {"w": start}, {}, updates)
        assert model["w"] == pytest.approx(start - 5 * gradient)

    def test_equal_steps_are_fedavg(self) -> None:
        updates = updates_for(START, CHANGES[0])
        found, _ = next_round(Rule("fednova"), answers((0.25, 0.75)), START, {}, updates)
        for name, expected in average_arrays(updates, [0.25, 0.75]).items():
            assert found[name] == pytest.approx(expected, abs=1e-6)

    def test_statistics_are_a_plain_average_however_unequal_the_steps(self) -> None:
        updates = updates_for(START, CHANGES[0])
        found, _ = next_round(Rule("fednova"), answers((0.5, 0.5), (1, 1000)), START, {}, updates)
        expected = average_arrays(updates, [0.5, 0.5])
        assert all(np.array_equal(found[name], expected[name]) for name in expected if "norm" in name)

    @pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (5, 0.9), (300, 0.5)])
    def test_steps_with_momentum_count_as_in_the_paper(self, steps: int, momentum: float) -> None:
        paper = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
        assert equivalent_steps(steps, momentum) == pytest.approx(paper)

    def test_steps_with_fedprox_count_as_in_the_paper(self) -> None:
        assert equivalent_steps(7, pull=0.1) == pytest.approx(sum(0.9**i for i in range(7)))

    def test_a_federations_settings_say_how_steps_count(self) -> None:
        sgd = OptimizerConfig(kind="sgd", learning_rate=0.1, momentum=0.5)
        rule = rule_of(AlgorithmConfig(method="fedprox", aggregation="fednova", optimizer=sgd, persist_optimizer=False, proximal_weight=0.5))
        assert (rule.momentum, rule.pull) == (0.5, 0.05)
        assert rule_of(AlgorithmConfig(method="fedprox", aggregation="fednova")).pull == 0, "a step of Adam counts one"
