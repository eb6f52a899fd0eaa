"""Whose update moved much farther than its batches explain, against the others, or with statistics of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from fedhelp_core.weights.check import Checked
from fedhelp_core.weights.comparison import Compared
from fedhelp_core.weights.header import WeightsSpec
from fedhelp_core.weights.outliers import far_movers, odd_statistics, opposed

SPEC = WeightsSpec("net", {
    "conv.weight": ("F32", (100,)), "head.bias": ("F32", (1,)), "norm.running_mean": ("F32", (4,)), "norm.running_var": ("F32", (4,)),
    "norm.num_batches_tracked": ("I64", ())})
MOVED = {"conv.weight": 3.0, "head.bias": 0.0}
STATISTICS = {"norm.running_mean": 1.0, "norm.running_var": 2.0}
ALIKE = dict.fromkeys("abcde", 9)


def refused(*changes: dict[str, float], batches: Mapping[str, int] = ALIKE) -> dict[str, str]:
    """Who of five silos is, the first ones changed."""
    found = {
        silo: Checked((0, 0, 0, 0, 0), {**MOVED, **(changes[i] if i < len(changes) else {})}) for i, silo in enumerate(batches)}
    return far_movers(found, SPEC, batches, bound=3.0)


def compared(*directions: float, statistics: Mapping[str, float] = STATISTICS) -> dict[str, Compared]:
    """Five silos of ordinary statistics but for the first's, and these directions."""
    given = [*directions, *[0.4] * (5 - len(directions))]
    return {silo: Compared(direction, statistics if silo == "a" else STATISTICS) for silo, direction in zip("abcde", given, strict=True)}


@pytest.mark.parametrize(("change", "what"), [
    ({"conv.weight": 9.1}, "its trained weights moved 3.03 times"), ({"conv.weight": math.inf}, "moved inf times"),
    ({"head.bias": 1.9}, "its tensor 'head.bias' moved 6.36 times as far as is usual among this round's silos for as many batches, at most 6 times")])
def test_one_silo_that_moves_far_is_named_with_what_moved(change: dict[str, float], what: str) -> None:
    found = refused(change)
    assert found.keys() == {"a"}
    assert what in found["a"]


@pytest.mark.parametrize("changes", [
    [], [{"conv.weight": 8.9}], [{"head.bias": 1.7}], [{"conv.weight": 0.0}], [dict.fromkeys(MOVED, 0.0)] * 4])
def test_what_is_usual_is_nobodys_fault(changes: list[dict[str, float]]) -> None:
    assert refused(*changes) == {}


def test_a_minority_cannot_move_the_measure() -> None:
    assert refused({"conv.weight": 1e9}, {"conv.weight": 1e9}).keys() == {"a", "b"}


def test_who_has_nine_times_the_batches_may_move_three_times_as_far() -> None:
    assert refused({"conv.weight": 26.9}).keys() == {"a"}
    assert refused({"conv.weight": 26.9}, batches={**ALIKE, "a": 81}) == {}
    assert refused({"conv.weight": 27.1}, batches={**ALIKE, "a": 81}).keys() == {"a"}
    assert refused({"conv.weight": 3.1}, batches={**ALIKE, "a": 1}).keys() == {"a"}


def test_who_says_that_it_has_endless_images_may_move_five_times_as_far() -> None:
    assert refused({"conv.weight": 44.9}, batches={**ALIKE, "a": 10**9}) == {}
    assert refused({"conv.weight": 45.1}, batches={**ALIKE, "a": 10**9}).keys() == {"a"}


def test_of_two_silos_nobody_can_say_which_is_the_odd_one() -> None:
    found = {"a": Checked((0, 0, 0, 0, 0), MOVED), "b": Checked((0, 0, 0, 0, 0), {name: 1e6 * norm for name, norm in MOVED.items()})}
    assert far_movers(found, SPEC, {"a": 9, "b": 9}, bound=2.0) == {}
    assert opposed({"a": Compared(1.0, {}), "b": Compared(-1.0, {})}, bound=-0.3) == {}


def test_statistics_far_from_the_rounds_are_named() -> None:
    found = odd_statistics(compared(statistics={**STATISTICS, "norm.running_var": 9.1}), SPEC, ALIKE, bound=4.0)
    assert found.keys() == {"a"}
    assert "its batch norms' statistics are 4.09 times as far from the round's median as is usual" in found["a"]
    assert odd_statistics(compared(statistics={**STATISTICS, "norm.running_var": 8.8}), SPEC, ALIKE, bound=4.0) == {}


def test_a_model_without_batch_norms_has_no_statistics_to_look_at() -> None:
    assert odd_statistics(compared(statistics={}), WeightsSpec("net", {"conv.weight": ("F32", (100,))}), ALIKE, bound=4.0) == {}


def test_who_undoes_what_the_others_do_is_named() -> None:
    found = opposed(compared(-0.31, -0.29), bound=-0.3)
    assert found.keys() == {"a"}
    assert "with a cosine of -0.31, at least -0.3 (protocol.min_direction) expected" in found["a"]
