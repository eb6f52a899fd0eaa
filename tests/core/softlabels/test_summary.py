"""A set in numbers that can be checked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.softlabels import distillation_set
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.summary import SetSummary, summarise
from fedhelp_core.store.base import Store
from tests.core.softlabels.helpers import PICTURES, SIDE, CountingTeacher, draw, run, teacher_config

SHADES = (0, 64, 192, 250)  # answered with (v/256, 1 - v/256): two favour each class


def summary_of(store: Store, public: Path, *teachers: Any, **options: Any) -> SetSummary:
    return summarise(store, run(store, public, *teachers).distillation_set_sha256, **options)


def test_classes_are_counted_and_averaged(local: Store, tmp_path: Path) -> None:
    found = summary_of(local, draw(tmp_path / "public", *SHADES), CountingTeacher())
    assert (found.images, found.image_sides, found.classes) == (4, (SIDE, SIDE), ("class 0", "class 1"))
    assert found.favourites_C == (2, 2)
    assert found.mean_C == pytest.approx([sum(SHADES) / 4 / 256, 1 - sum(SHADES) / 4 / 256], abs=1e-3)
    assert found.teachers == (("teacher version 1", 1.0),)
    assert found.agreements == ()


def test_entropy_is_none_for_certainty_and_the_most_for_no_opinion(local: Store, tmp_path: Path) -> None:
    found = summary_of(local, draw(tmp_path / "public", 0, 128), CountingTeacher())
    assert sorted(found.entropies_N) == pytest.approx([0.0, math.log(2)])


def test_examples_are_images_with_their_likeliest_classes_and_their_names_in_the_ledger(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    prompts = ("a mole", "a melanoma")
    found = summary_of(local, public, CountingTeacher(teacher_config(prompts=prompts)))
    assert found.classes == prompts
    assert [example.sha256 for example in found.examples] == list(read_public_images(public, PICTURES).hashes)
    for example in found.examples:
        shade = int(example.image_HWC[0, 0, 0])
        assert (example.image_HWC == shade).all()
        likeliest = [("a mole", shade / 256), ("a melanoma", 1 - shade / 256)]
        assert example.favourites == tuple((n, pytest.approx(p, abs=1e-3)) for n, p in sorted(likeliest, key=lambda pair: -pair[1]))


@pytest.mark.parametrize("examples", [0, 1, 3, 100])
def test_examples_come_from_all_over_a_set_of_several_shards(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int,
) -> None:
    public = draw(tmp_path / "public", *range(0, 250, 50))
    whole = summary_of(local, public, CountingTeacher(), examples=100)
    monkeypatch.setattr(distillation_set, "IMAGES_PER_SHARD", 2)
    found = summary_of(local, public, CountingTeacher(), examples=examples)
    assert len(found.examples) == min(examples, 5)
    names = [example.sha256 for example in whole.examples]
    assert [example.sha256 for example in found.examples] == [names[i] for i in np.linspace(0, 4, min(examples, 5)).astype(int)]
    assert (found.favourites_C, found.mean_C) == (whole.favourites_C, pytest.approx(whole.mean_C))
    np.testing.assert_array_equal(found.entropies_N, whole.entropies_N)


class TestAgreement:
    def teachers(self, *rows: list[float]) -> list[CountingTeacher]:
        return [CountingTeacher(teacher_config(name=f"t{i}"), then=lambda _, answer, row=row: [row] * len(answer)) for i, row in enumerate(rows)]

    def test_teachers_that_say_the_same_agree(self, local: Store, tmp_path: Path) -> None:
        found = summary_of(local, draw(tmp_path / "public", *SHADES), *self.teachers([0.25, 0.75], [0.25, 0.75]))
        (pair,) = found.agreements
        assert (pair.one, pair.other, pair.same_favourite, pair.divergence) == ("t0", "t1", 1.0, pytest.approx(0.0, abs=1e-12))

    def test_teachers_that_contradict_each_other_are_as_far_apart_as_can_be(self, local: Store, tmp_path: Path) -> None:
        found = summary_of(local, draw(tmp_path / "public", *SHADES), *self.teachers([1, 0], [0, 1], [1, 0]))
        assert [(pair.one, pair.other, pair.same_favourite) for pair in found.agreements] == [("t0", "t1", 0.0), ("t0", "t2", 1.0), ("t1", "t2", 0.0)]
        assert [pair.divergence for pair in found.agreements] == pytest.approx([math.log(2), 0.0, math.log(2)], abs=1e-9)

    def test_answers_that_the_ledger_no_longer_has_are_not_made_up(self, local: Store, tmp_path: Path) -> None:
        sha256 = run(local, draw(tmp_path / "public", *SHADES), *self.teachers([1, 0], [0, 1])).distillation_set_sha256
        local.delete(next(key for key in local.list("softlabels/ledger/") if "/answers/" in key))
        assert summarise(local, sha256).agreements == ()
