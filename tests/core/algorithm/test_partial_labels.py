"""Eq 7 where silos label some outputs alone, against loops over Python's own floats: an output's row counts who labels it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fedhelp_core.algorithm.averaging import Rule
from fedhelp_core.algorithm.server import Answers, Groups, Part, Rows, next_round
from fedhelp_core.config.algorithm import ServerOptimizerConfig
from fedhelp_core.errors import WeightsError
from fedhelp_core.weights.header import Weights

OUTPUTS = 3
LABELLED: dict[str, Sequence[bool] | None] = {"a": None, "b": (True, False, False), "c": (False, False, True), "d": (True, False, True)}
SAMPLES = {"a": 10, "b": 20, "c": 30, "d": 40}
STEPS = {"a": 3, "b": 5, "c": 8, "d": 10}
DTYPE = np.dtype(np.float32)
RULES = {
    "mean": Rule(), "median": Rule("median"), "trimmed mean": Rule("trimmed-mean"), "fednova": Rule("fednova"),
    "momentum": Rule(optimizer=ServerOptimizerConfig(kind="momentum")), "adam": Rule(optimizer=ServerOptimizerConfig(kind="adam")),
    "yogi of fednova": Rule("fednova", optimizer=ServerOptimizerConfig(kind="yogi")), "scaffold": Rule(control_variates_of=0.1)}


def model(seed: int) -> Weights:
    generator = np.random.default_rng(seed)
    return {
        "backbone.conv.weight": generator.standard_normal((4, 2), dtype=np.float32), "norm.running_var": np.ones(4, np.float32),
        "norm.num_batches_tracked": np.array(seed), "head.weight": generator.standard_normal((OUTPUTS, 4), dtype=np.float32),
        "head.bias": generator.standard_normal(OUTPUTS, dtype=np.float32)}


def updates(silos: Sequence[str], round: int) -> list[Weights]:
    return [model(100 * round + ord(silo)) for silo in silos]


def who(silos: Sequence[str], output: int | None) -> list[str]:
    def labels(silo: str) -> bool:
        of_one = LABELLED[silo]
        return output is None or of_one is None or of_one[output]

    return [silo for silo in silos if labels(silo)]


def of_answers(silos: Sequence[str], labelled: Mapping[str, Sequence[bool] | None] | None = LABELLED) -> Answers:
    return Answers.of(silos, SAMPLES, STEPS, "samples", labelled)


@pytest.mark.parametrize("silos", [("a", "b", "c", "d"), ("b", "c"), ("b", "d")])
def test_a_row_is_the_mean_of_those_who_label_it_and_all_else_the_mean_of_all(silos: tuple[str, ...]) -> None:
    before, sent = model(0), updates(silos, 1)
    found, _ = next_round(Rule(), of_answers(silos), before, {}, sent)
    by_name = dict(zip(silos, sent, strict=True))

    def mean(names: Sequence[str], value: str, place: tuple[int, ...]) -> float:
        total = sum(SAMPLES[name] for name in names)
        return sum(SAMPLES[name] / total * float(by_name[name][value][place]) for name in names)

    for place in np.ndindex(4, 2):
        assert found["backbone.conv.weight"][place] == pytest.approx(mean(silos, "backbone.conv.weight", place), rel=1e-6)
    assert found["norm.num_batches_tracked"] == 100 + max(map(ord, silos))
    for output in range(OUTPUTS):
        names = who(silos, output)
        for name, places in (("head.bias", [(output,)]), ("head.weight", [(output, column) for column in range(4)])):
            for place in places:
                expected = mean(names, name, place) if names else float(before[name][place])
                assert found[name][place] == pytest.approx(expected, rel=1e-6)
    if not who(silos, 1):
        assert np.array_equal(found["head.weight"][1], before["head.weight"][1])


@pytest.mark.parametrize("what", RULES)
def test_every_rule_makes_a_row_of_those_who_label_it_alone(what: str) -> None:
    """Two rounds, the second without `a`, so that nobody labels the second output: as a federation of the labelling silos alone would have it."""
    rule, weighting = RULES[what], "uniform" if what in ("median", "trimmed mean") else "samples"
    found, remembered = model(0), dict[Part, Weights]()
    alone = {output: (model(0), dict[Part, Weights]()) for output in range(OUTPUTS)}
    for round, silos in ((1, ("a", "b", "c", "d")), (2, ("b", "c", "d"))):
        sent = dict(zip(silos, updates(silos, round), strict=True))
        found, remembered = next_round(
            rule, Answers.of(silos, SAMPLES, STEPS, weighting, LABELLED), found, remembered, list(sent.values()))
        for output in range(OUTPUTS):
            names, all_who_label = who(silos, output), who(tuple(SAMPLES), output)
            if names:
                known = {silo: SAMPLES[silo] for silo in all_who_label}
                alone[output] = next_round(
                    rule, Answers.of(names, known, STEPS, weighting), *alone[output], [sent[silo] for silo in names])
        for output, (lonely, kept) in alone.items():
            for name in ("head.weight", "head.bias"):
                np.testing.assert_allclose(found[name][output], lonely[name][output], rtol=1e-6, atol=1e-7)
                for part, of_part in remembered.items():
                    np.testing.assert_allclose(of_part[name][output], kept[part][name][output], rtol=1e-5, atol=1e-6)
    assert all(math.isfinite(value) for array in found.values() for value in np.ravel(array))


@pytest.mark.parametrize("what", RULES)
def test_where_all_silos_label_everything_not_a_bit_changes(what: str) -> None:
    silos, before = tuple(SAMPLES), model(0)
    plain = next_round(RULES[what], of_answers(silos, None), before, {}, updates(silos, 1))
    said = next_round(RULES[what], of_answers(silos, {"a": None, "b": (True,) * 3, "c": None, "d": None}), before, {}, updates(silos, 1))
    assert all(np.array_equal(plain[0][name], said[0][name]) for name in before)


def test_rows_are_found_whichever_way_the_kernel_lies() -> None:
    groups = Groups(3)
    assert groups("head.weight", DTYPE, (3, 8, 1, 1)) == Rows(3, 8)
    assert groups("head.bias", DTYPE, (3,)) == Rows(3, 1)
    transposed = groups("head.weight", DTYPE, (8, 3, 2, 2))
    assert transposed == Rows(3, 4)
    assert isinstance(transposed, Rows) and [transposed.output_of(first) for first in (0, 4, 8, 12)] == [0, 1, 2, 0]
    assert groups("backbone.head.weight", DTYPE, (3, 8)) is True and groups("norm.running_var", DTYPE, (3,)) is False
    assert Groups()("head.weight", DTYPE, (3, 8)) is True
    with pytest.raises(WeightsError, match=r"'head.weight': 3 outputs expected, got a shape \(5, 8\)"):
        groups("head.weight", DTYPE, (5, 8))


def test_a_transposed_head_has_its_rows_in_the_second_axis() -> None:
    silos = ("b", "c")
    sent = [{"head.weight": np.full((8, 3, 2, 2), value, np.float32), "head.bias": np.full(3, value, np.float32)} for value in (1.0, 5.0)]
    before = {"head.weight": np.full((8, 3, 2, 2), 9.0, np.float32), "head.bias": np.full(3, 9.0, np.float32)}
    found, _ = next_round(Rule(), of_answers(silos), before, {}, sent)
    assert found["head.bias"].tolist() == [1.0, 9.0, 5.0]
    assert all((found["head.weight"][:, output] == value).all() for output, value in enumerate([1.0, 9.0, 5.0]))
