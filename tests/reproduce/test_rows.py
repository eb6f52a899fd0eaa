"""The compared rows of the study on real images."""

import math

from benchmarks.reproduce.rows import EPOCHS, PUBLIC_STEPS, START, equal_epochs, rows_of
from benchmarks.reproduce.sets import MELANOMA, SETS


def test_the_compared_methods_take_at_least_as_many_steps_as_fedhelp():
    batches, rounds = [14, 9, 4, 2], 12
    fedhelp = sum(EPOCHS * n * (1 + PUBLIC_STEPS) * rounds + START for n in batches)
    epochs = equal_epochs(batches, rounds)
    assert fedhelp <= epochs * rounds * sum(batches) < fedhelp + rounds * sum(batches)


def test_fedhelp_comes_first_and_every_baseline_meets_it_at_equal_steps():
    rows = rows_of(MELANOMA, natural=True, epochs=5)
    assert rows[0].name == "FedHelp"
    compared = [row for row in rows if row.compared]
    assert {row.method for row in compared} == {"local", "fedavg", "fedprox"}
    assert all(row.settings["algorithm.local_epochs"] == 5 for row in compared)
    assert len({row.name for row in rows}) == len(rows)


def test_hospitals_and_the_teachers_are_not_the_same():
    for study in SETS.values():
        assert study.teacher_hospital not in study.names
        assert math.isclose(study.share, 1.0) or not study.hospitals.options.images_each
