"""What shows the same stays on one side: lesions that lists tell, copies of what was set aside, the published split that is kept on purpose."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedhelp_core.config.federation import Federation
from fedhelp_core.config.silo import FedIsicData, SiloConfig, load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.data.findings import remarks
from fedhelp_core.data.ingest import ingest, write_silos
from fedhelp_core.data.phantom import chest_xray, fed_isic
from fedhelp_core.data.public_layouts import Hospital, Options, hospitals_of
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.protocol.kinds import resolve_kinds
from tests.tiny import federation_document

MELANOMA = TaskConfig(name="melanoma", image_size=24)
PNEUMONIA = TaskConfig(name="pneumonia", image_size=24)
SPLIT = "train_test_split.csv"


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """Two centers of 60 and 30 training images and 12 for the test each."""
    fed_isic.write_fed_isic(
        tmp_path / "isic", seed=4, sites=[fed_isic.Site(train=n, test=12, mix=(1,) * 8, camera=fed_isic.Camera()) for n in (60, 30)])
    return tmp_path / "isic"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / SPLIT, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def with_lesions(folder: Path, lesions: Mapping[str, str], *, beside: bool) -> None:
    """Image -> lesion, in the split CSV or in HAM10000's own table beside it."""
    rows = rows_of(folder)
    if beside:
        lines = ["lesion_id,image_id,dx", *(f"{lesion},{image},nv" for image, lesion in lesions.items())]
        (folder / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    with open(folder / SPLIT, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "lesion"])
        writer.writeheader()
        writer.writerows({**row, "lesion": lesions.get(row["image"], "")} for row in rows)


def pairs(folder: Path) -> dict[str, str]:
    """Lesions of two photographs each, in the order of the CSV: center 0's last training image shares one with its first test image."""
    images = [row["image"] for row in rows_of(folder) if row["center"] == "0"]
    return {image: f"HAM_{(number + 1) // 2:07}" for number, image in enumerate(images)}


@pytest.mark.parametrize("beside", [True, False])
def test_lesions_of_training_and_test_are_refused_until_one_flag_says_what_to_do(beside: bool, isic: Path) -> None:
    with_lesions(isic, pairs(isic), beside=beside)
    hospitals = hospitals_of("fed-isic2019", isic, MELANOMA, Options())
    refused = ingest(hospitals, MELANOMA).refused
    assert refused[0].startswith("the same patient or lesion, 'HAM_")
    assert "--drop-leaked training" in refused[-1] and "--published-split" in refused[-1]
    dropped = ingest(hospitals, MELANOMA, drop_leaked="training")
    assert dropped.refused == ()
    assert len(dropped.report.dropped) == 1
    kept = ingest(hospitals, MELANOMA, keep_leaked=True)
    assert kept.refused == () == kept.report.dropped
    assert any(remark.startswith("the published split is kept although it leaks: 1 test images show") for remark in remarks(kept.report))


def test_a_lesion_is_in_training_or_in_validation(isic: Path) -> None:
    with_lesions(isic, pairs(isic), beside=True)
    for one in hospitals_of("fed-isic2019", isic, MELANOMA, Options()).values():
        lesion = one.manifest.subjects
        sides = [{lesion[item.image] for item in items if item.image in lesion} for items in (one.manifest.training, one.manifest.validation)]
        assert len(one.manifest.validation) >= 4
        assert not sides[0] & sides[1]


def test_a_silo_that_reads_the_split_itself_is_refused_too(isic: Path, tmp_path: Path) -> None:
    with_lesions(isic, pairs(isic), beside=True)
    data = FedIsicData(layout="fed-isic2019", images=isic / "images", split_csv=isic / SPLIT, center=0, lesions=isic / "HAM10000_metadata.csv")
    with pytest.raises(DataError, match=r"1 patients or lesions are in more than one split, the first HAM_0000030; .* fedhelp data ingest"):
        manifest_of(SiloConfig(name="a", data=data, state=tmp_path), MELANOMA)


def test_a_lesion_column_of_ones_own_list_stays_together(isic: Path) -> None:
    rows = [row for row in rows_of(isic) if row["center"] == "0"]
    lines = [f"images/{row['image']}.jpg,{row['target']},L{number // 3}" for number, row in enumerate(rows)]
    (isic / "own.csv").write_text("image,label,lesion\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (one,) = hospitals_of("csv", isic, MELANOMA, Options(csv=isic / "own.csv")).values()
    where = {one.manifest.subjects[item.image]: split for split, items in one.manifest.splits() for item in items}
    assert all(where[one.manifest.subjects[item.image]] == split for split, items in one.manifest.splits() for item in items)
    assert set(where.values()) == {"training", "validation", "test"}


def test_a_copy_of_what_was_set_aside_takes_it_back_to_training(isic: Path) -> None:
    before = hospitals_of("fed-isic2019", isic, MELANOMA, Options())
    aside, stays = before["center-0"].manifest.validation[0].image, before["center-1"].manifest.training[0].image
    shutil.copy(aside, stays)
    found = ingest(hospitals_of("fed-isic2019", isic, MELANOMA, Options()), MELANOMA)
    assert found.refused == ()
    assert aside in {item.image for item in found.manifests["center-0"].training}
    assert len(found.manifests["center-0"].validation) == len(before["center-0"].manifest.validation) - 1
    assert {place.split for place in found.report.places if place.seen.item.image == aside} == {"training"}


def test_the_list_of_problems_is_shortened_once_and_keeps_advice_and_leak(isic: Path, tmp_path: Path) -> None:
    rows = [row for row in rows_of(isic) if row["center"] == "0"]
    lines = [f"images/{row['image']}.jpg,{row['target']},{row['fold']}" for row in rows]
    lines += [f"folder{chr(97 + number // 26)}{chr(97 + number % 26)}/gone.jpg,0,train" for number in range(80)]
    (isic / "own.csv").write_text("image,label,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(isic / "images" / f"{rows[0]['image']}.jpg", isic / "images" / f"{rows[-1]['image']}.jpg")
    found = ingest(hospitals_of("csv", isic, MELANOMA, Options(csv=isic / "own.csv", validation_fraction=0.0)), MELANOMA)
    with pytest.raises(DataError) as caught:
        write_silos(tmp_path / "out", found, MELANOMA)
    said = caught.value.problems
    assert said == found.refused
    assert said[50:52] == ("... and 30 more like these", "mend or replace these, or leave them out with --drop-unusable")
    assert said[52].startswith("the same picture is in training and test")
    assert len(said) == 54
    assert not any("more like these" in line for line in said[51:])


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    chest_xray.write_chest_xray(tmp_path / "chest", seed=4, counts={"training": (30, 50), "validation": (2, 2), "test": (6, 6)})
    return tmp_path / "chest"


def images_of(one: Hospital) -> list[int]:
    return [len(items) for _, items in one.manifest.splits()]


def test_any_set_of_one_hospital_is_dealt_out_and_one_of_several_is_not(chest: Path, isic: Path) -> None:
    rows = [f"{path.relative_to(chest)},{path.parent.name.lower()},p{number // 2}"
            for number, path in enumerate(sorted((chest / "train").rglob("*.jpeg")))]
    (chest / "own.csv").write_text("image,label,patient\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = hospitals_of("csv", chest, PNEUMONIA, Options(count=3, skew=2.0))
    assert list(found) == ["hospital-0", "hospital-1", "hospital-2"]
    assert sum(sum(images_of(one)) for one in found.values()) == 80
    patients = [{one.manifest.subjects[item.image] for _, items in one.manifest.splits() for item in items} for one in found.values()]
    assert sum(map(len, patients)) == len(set().union(*patients))
    with pytest.raises(ConfigError, match="images of one hospital can be dealt out, and the set names 2: center 0, center 1"):
        hospitals_of("fed-isic2019", isic, MELANOMA, Options(count=3))


def test_each_hospital_gets_the_numbers_of_images_that_were_asked_for(chest: Path) -> None:
    found = hospitals_of("chest-xray", chest, PNEUMONIA, Options(images_each=(40, 20, 8)))
    assert [sum(images_of(one)[:2]) for one in found.values()] == [40, 20, 8]
    assert [images_of(one)[1] > 0 for one in found.values()] == [True, True, False]
    with pytest.raises(ConfigError, match=r"--images-each: at most 84 in all expected, .* got 100"):
        hospitals_of("chest-xray", chest, PNEUMONIA, Options(images_each=(60, 40)))


@pytest.mark.parametrize("options", [{"count": 2, "sizes": (1.0, 2.0)}, {"sizes": (1.0,), "images_each": (3,)}, {"sizes": (1.0,), "skew": 2.0}])
def test_sizes_said_in_two_ways_are_refused(options: dict[str, object], chest: Path) -> None:
    with pytest.raises(ConfigError, match="each says how hospitals are dealt; give one of them"):
        hospitals_of("chest-xray", chest, PNEUMONIA, Options(**options))  # type: ignore[arg-type]


def test_a_hospital_that_only_tests_has_test_images_alone_and_no_part_in_a_run(chest: Path, tmp_path: Path) -> None:
    found = ingest(hospitals_of("chest-xray", chest, PNEUMONIA, Options(sizes=(1.0,), silos=("nih",), test_only=True)), PNEUMONIA)
    (path,) = write_silos(tmp_path / "out", found, PNEUMONIA)
    arrays = load_silo_arrays(load_silo(path), PNEUMONIA)
    assert (len(arrays.training.labels_N), len(arrays.validation.labels_N), len(arrays.test.labels_N)) == (0, 0, 96)
    some = hospitals_of("chest-xray", chest, PNEUMONIA, Options(sizes=(1.0,), test_only=True, validation_fraction=0.25))["hospital-0"]
    assert images_of(some) == [0, 25, 71]
    federation = Federation.model_validate(federation_document(tmp_path))
    with pytest.raises(ConfigError, match=r"silos: amsterdam: no training image .*, so no part in a run"):
        resolve_kinds(federation, dict.fromkeys(federation.silo_names, 5) | {"amsterdam": 0})
