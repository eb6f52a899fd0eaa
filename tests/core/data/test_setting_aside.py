"""Which training images become validation images, and how one hospital's images are dealt out: whole subjects, by class, the same everywhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fedhelp_core.config.silo import DatalistData
from fedhelp_core.data.datalist import Manifest, manifest_from, read_layout, with_validation
from fedhelp_core.data.items import Item
from fedhelp_core.data.setting_aside import wanted_of
from fedhelp_core.data.sharing import dealt, skewed, subject_of


def items(counts: tuple[int, ...], folder: str = "") -> tuple[Item, ...]:
    return tuple(Item(Path(f"/set/{folder}{label}-{number}.png"), label) for label, count in enumerate(counts) for number in range(count))


def classes(found: tuple[Item, ...]) -> dict[int, int]:
    return dict(Counter(item.label for item in found))


@pytest.mark.parametrize(("counts", "fraction", "wanted"), [
    ((200, 200), None, {0: 40, 1: 40}),
    ((300, 100), None, {0: 60, 1: 20}),
    ((20, 20), None, {0: 5, 1: 5}),      # a quarter, so that ten come together
    ((30, 10), None, {0: 8, 1: 4}),      # four of a class that has ten
    ((19, 5), None, {0: 4, 1: 1}),
    ((8, 8), None, {0: 2, 1: 2}),
    ((4, 4), None, {}),                  # eight have to be left to train on
    ((12, 1), None, {0: 4, 1: 0}),
    ((7, 7), None, {}),                  # two images decide by chance
    ((9000, 1000), None, {0: 450, 1: 50}),
    ((), None, {}),
    ((8, 8), 0.5, {0: 4, 1: 4}),
    ((8, 8), 0.0, {0: 0, 1: 0}),
])
def test_how_many_images_of_each_class_are_set_aside(counts: tuple[int, ...], fraction: float | None, wanted: dict[int, int]) -> None:
    found = wanted_of(items(counts), fraction)
    assert {label: count for label, count in found.items() if count} == {label: count for label, count in wanted.items() if count}


@pytest.mark.parametrize(("count", "wanted"), [(8, 0), (11, 0), (12, 4), (16, 4), (40, 8)])
def test_four_volumes_choose_a_model_and_eight_are_left(count: int, wanted: int) -> None:
    volumes = tuple(replace(item, mask=Path("/mask.nii.gz")) for item in items((count,)))
    assert sum(wanted_of(volumes, None).values()) == wanted


def test_what_is_set_aside_is_by_class_whole_subjects_and_always_the_same() -> None:
    training = items((60, 40))
    subjects = {item.image: f"{item.label}/{int(item.image.stem.split('-')[1]) // 3}" for item in training}
    found = with_validation(manifest_from("a list", {"training": training, "test": items((1,), "test-")}, subjects=subjects))
    assert classes(found.validation) == {0: 12, 1: 7}  # of 8: subjects of three, and one of a single image
    assert not {subjects[item.image] for item in found.training} & {subjects[item.image] for item in found.validation}
    assert set(found.training) | set(found.validation) == set(training)
    again = with_validation(manifest_from("a list", {"training": training[::-1], "test": items((1,), "test-")}, subjects=subjects))
    assert set(again.validation) == set(found.validation)
    assert any("training images are set aside for validation" in note for note in found.notes)


@pytest.mark.parametrize("listed", [10, 11])
def test_a_hospital_whose_lists_name_ten_validation_images_keeps_its_training_images(listed: int) -> None:
    manifest = manifest_from("a list", {"training": items((60, 40)), "validation": items((listed,), "val-"), "test": items((1,), "test-")})
    assert with_validation(manifest) == manifest
    assert with_validation(manifest).notes == ()


def test_a_datalist_that_names_no_validation_list_gets_one_and_an_empty_list_stays_empty(tmp_path: Path) -> None:
    rows = ", ".join(f'{{"image": "{number}.png", "label": {number % 2}}}' for number in range(40))

    def read(more: str) -> Manifest:
        (tmp_path / "list.json").write_text(f'{{"training": [{rows}], "test": [{{"image": "t.png", "label": 0}}]{more}}}', encoding="utf-8")
        return read_layout(DatalistData(layout="datalist", datalist=tmp_path / "list.json"))

    assert len(read("").validation) == 10
    assert len(read(', "validation": []').validation) == 0


def test_a_class_in_large_subjects_gives_its_smallest_one_but_never_half_of_itself() -> None:
    training = (*items((40,)), *(Item(Path(f"/set/rare-{number}.png"), 1) for number in range(12)))
    subjects = {item.image: item.image.stem if item.label == 0 else f"rare {min(int(item.image.stem[5:]) // 5, 1)}" for item in training}  # 5 and 7
    found = with_validation(manifest_from("a list", {"training": training}, subjects=subjects))
    assert classes(found.validation)[1] == 5
    one = dict.fromkeys((item.image for item in training if item.label), "rare")
    assert 1 not in classes(with_validation(manifest_from("a list", {"training": training}, subjects={**subjects, **one})).validation)


def test_hospitals_of_given_numbers_of_images_get_them_in_the_sets_own_balance() -> None:
    training = items((1000, 3000))
    subjects = {item.image: f"{item.label}/{int(item.image.stem.split('-')[1]) // (1 + item.label)}" for item in training}
    hands = dealt({"training": training, "test": items((30, 30), "test-")}, subjects, (400, 130, 60, 40, 24, 16), images=True)
    for hand, size in zip(hands, (400, 130, 60, 40, 24, 16), strict=True):
        assert size - 1 <= len(hand["training"]) <= size  # an odd number of pneumonias does not part two of one patient
        assert classes(hand["training"])[0] == pytest.approx(size / 4, abs=1)
    assert [len(hand["test"]) for hand in hands] == [10] * 6
    owners = [{subject_of(item, subjects) for item in hand["training"]} for hand in hands]
    assert sum(map(len, owners)) == len(set().union(*owners))


@pytest.mark.parametrize(("count", "ratio", "expected"), [
    (6, None, (9930, 3163, 2691, 1807, 655, 351)), (1, None, (9930,)), (2, None, (9930, 351)), (3, 1.0, (9930, 9930, 9930)),
])
def test_a_skew_is_the_papers_unless_a_ratio_is_given(count: int, ratio: float | None, expected: tuple[float, ...]) -> None:
    assert skewed(count, ratio) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [2, 4, 6, 9])
def test_the_largest_hospital_is_so_many_times_as_large_as_the_smallest(count: int) -> None:
    sizes = skewed(count, 10.0)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[0] / sizes[-1] == pytest.approx(10, rel=1e-4)
