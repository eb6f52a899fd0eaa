"""Whose update moved much farther than the others' of the round, as a whole, in one tensor, or in statistics."""

from __future__ import annotations

import math

import pytest

from fedhelp_core.weights.check import Checked
from fedhelp_core.weights.header import WeightsSpec
from fedhelp_core.weights.outliers import outliers

SPEC = WeightsSpec("net", {
    "conv.weight": ("F32", (100,)), "head.bias": ("F32", (1,)), "norm.running_mean": ("F32", (4,)), "norm.running_var": ("F32", (4,)),
    "norm.num_batches_tracked": ("I64", ())})
HONEST = {"conv.weight": 3.0, "head.bias": 0.0, "norm.running_mean": 10.0, "norm.running_var": 40.0}


def refused(*changes: dict[str, float], trained: float | None = 8.0, statistics: float | None = 20.0) -> dict[str, str]:
    """Who of five silos is, the first ones changed."""
    silos = "abcde"
    found = {
        silo: Checked((0, 0, 0, 0, 0), {**HONEST, **(changes[i] if i < len(changes) else {})}) for i, silo in enumerate(silos)}
    return outliers(found, SPEC, trained=trained, statistics=statistics)


@pytest.mark.parametrize(("change", "what"), [
    ({"conv.weight": 25.0}, "its trained weights moved 8.33 times|its tensor 'conv.weight' moved 8.33 times"),
    ({"head.bias": 2.5}, "its tensor 'head.bias' moved 8.37 times"),
    ({"norm.running_var": 900.0}, "protocol.max_statistics_ratio"), ({"norm.running_mean": 900.0}, "its tensor 'norm.running_mean' moved"),
    ({"conv.weight": math.inf}, "moved inf times")])
def test_one_silo_that_moves_far_is_named_with_what_moved(change: dict[str, float], what: str) -> None:
    found = refused(change)
    assert found.keys() == {"a"}
    assert any(part in found["a"] for part in what.split("|"))


@pytest.mark.parametrize("changes", [
    [], [{"conv.weight": 23.0}], [{"head.bias": 2.0}], [{"norm.running_var": 780.0}], [{"conv.weight": 0.0}],
    [dict.fromkeys(HONEST, 0.0)] * 4])
def test_what_is_usual_is_nobodys_fault(changes: list[dict[str, float]]) -> None:
    assert refused(*changes) == {}


def test_a_minority_cannot_move_the_measure() -> None:
    assert refused({"conv.weight": 1e9}, {"conv.weight": 1e9}).keys() == {"a", "b"}


def test_of_two_silos_nobody_can_say_which_is_the_odd_one() -> None:
    found = {"a": Checked((0, 0, 0, 0, 0), HONEST), "b": Checked((0, 0, 0, 0, 0), {name: 1e6 * norm for name, norm in HONEST.items()})}
    assert outliers(found, SPEC, trained=2.0, statistics=2.0) == {}


def test_both_bounds_can_be_switched_off() -> None:
    assert refused({"conv.weight": 1e9, "norm.running_var": 1e9}, trained=None, statistics=None) == {}
