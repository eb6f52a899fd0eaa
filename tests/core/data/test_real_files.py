"""A few dozen real patients' images through `fedhelp data ingest`, where FEDHELP_REALDATA names a folder of them; they are never in the repository.

The folder holds pneumonia/ (chest-xray), pneumonia-nih/ (csv), pneumoniamnist/ (medmnist), skin/ (fed-isic2019) and brain/ (fed-ixi); a set that is
not there is skipped. `make test DATA=<folder>` sets the variable.
"""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedhelp_cli.main import main
from fedhelp_core.config.silo import FedIxiData, SiloConfig, load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import SiloArrays, load_silo_arrays
from fedhelp_core.data.chest_xray import CLASS_FOLDERS, FOLDERS, patient_of

REAL = Path(os.environ.get("FEDHELP_REALDATA", ""))
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(120),
    pytest.mark.skipif(not os.environ.get("FEDHELP_REALDATA"), reason="FEDHELP_REALDATA names no folder of real images (make test DATA=<folder>)")]


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"FEDHELP_REALDATA holds no folder {name}")
    return REAL / name


def ingested(out: Path, *words: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", "ingest", *map(str, words), "--out", str(out)])


def silos(out: Path, task: TaskConfig) -> dict[str, SiloArrays]:
    return {path.stem: load_silo_arrays(load_silo(path), task) for path in sorted((out / "silos").glob("*.yaml"))}


def sizes(found: SiloArrays) -> tuple[int, int, int]:
    return len(found.training.labels_N), len(found.validation.labels_N), len(found.test.labels_N)


def rows_in(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def few_chests(tmp_path: Path) -> Path:
    """40 images of each class of training, the published validation images and 12 of each class of the test."""
    for split, folder in FOLDERS.items():
        for label in CLASS_FOLDERS:
            source, target = real("pneumonia") / "chest_xray" / folder / label, tmp_path / "few" / folder / label
            target.mkdir(parents=True)
            for path in sorted(source.iterdir())[: {"training": 40, "validation": 8, "test": 12}[split]]:
                shutil.copy(path, target)
    return tmp_path / "few"


def test_chest_xrays_are_dealt_out_with_validation_images_everywhere_but_in_the_smallest(few_chests: Path, tmp_path: Path) -> None:
    done = ingested(tmp_path / "out", "chest-xray", few_chests, "--images-each", "50,24,8")
    assert done.exit_code == 0, done.output
    found = [sizes(one) for one in silos(tmp_path / "out", TaskConfig(name="pneumonia", image_size=32)).values()]
    assert [training + validation for training, validation, _ in found] == [50, 24, 8]
    assert [validation >= least for (_, validation, _), least in zip(found, (10, 6, 0), strict=True)] == [True] * 3
    assert found[2][:2] == (8, 0)
    assert sum(test for _, _, test in found) == 24


def test_no_patient_of_the_published_chest_xrays_is_in_two_splits() -> None:
    split_of: dict[str, set[str]] = {}
    files = others = 0
    for split, folder in FOLDERS.items():
        for label in CLASS_FOLDERS:
            for path in (real("pneumonia") / "chest_xray" / folder / label).iterdir():
                split_of.setdefault(patient_of(path.name), set()).add(split)
                files += 1
                others += patient_of(path.name) == path.name
    assert (files, others) == (5856, 0)  # every name follows the scheme
    assert all(len(found) == 1 for found in split_of.values())


@pytest.fixture
def few_of_nih(tmp_path: Path) -> Path:
    """The first images of each class of the list, and the images that it names."""
    rows = rows_in(real("pneumonia-nih") / "list.csv")
    kept = [row for label in ("normal", "pneumonia") for row in [row for row in rows if row["label"] == label][:24]]
    for row in kept:
        (tmp_path / "nih" / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real("pneumonia-nih") / row["image"], tmp_path / "nih" / row["image"])
    write_rows(tmp_path / "nih" / "list.csv", kept)
    return tmp_path / "nih"


def test_another_hospital_trains_by_patient_or_only_tests(few_of_nih: Path, tmp_path: Path) -> None:
    for more, expected in (([], None), (["--test-only"], (0, 0, 48))):
        out = tmp_path / f"out{len(more)}"
        done = ingested(out, "csv", few_of_nih, "--task", "pneumonia", *more)
        assert done.exit_code == 0, done.output
        (found,) = silos(out, TaskConfig(name="pneumonia", image_size=32)).values()
        assert sum(sizes(found)) == 48
        assert sizes(found) == expected or (expected is None and sizes(found)[1] >= 4)


def test_medmnist_is_dealt_out(tmp_path: Path) -> None:
    done = ingested(tmp_path / "out", "medmnist", real("pneumoniamnist"), "--silos", "3", "--sample", "12", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "hospital-2" in done.output


@pytest.fixture
def few_lesions(tmp_path: Path) -> Path:
    """Thirty rows of each of the published split's hospitals, and the picture that is in training and in test."""
    rows = rows_in(real("skin") / "split.csv")
    kept = [row for center in "12345" for fold, most in (("train", 20), ("test", 10))
            for row in [row for row in rows if (row["center"], row["fold"]) == (center, fold)][:most]]
    kept += [row for row in rows if row["image"] in ("ISIC_0029938", "ISIC_0024777") and row not in kept]
    (tmp_path / "skin" / "images").mkdir(parents=True)
    for row in kept:
        shutil.copy(real("skin") / "images" / f"{row['image']}.jpg", tmp_path / "skin" / "images")
    write_rows(tmp_path / "skin" / "split.csv", kept)
    return tmp_path / "skin"


def test_the_published_skin_split_holds_one_picture_twice_and_one_flag_goes_on(few_lesions: Path, tmp_path: Path) -> None:
    refused = ingested(tmp_path / "out", "fed-isic2019", few_lesions)
    assert refused.exit_code == 11
    assert "ISIC_0029938.jpg = center-5 test ISIC_0024777.jpg" in refused.output
    for flag in (["--drop-leaked", "training"], ["--published-split"]):
        out = tmp_path / flag[0].strip("-")
        done = ingested(out, "fed-isic2019", few_lesions, *flag)
        assert done.exit_code == 0, done.output
        found = silos(out, TaskConfig(name="melanoma", image_size=32))
        assert list(found) == [f"center-{center}" for center in range(1, 6)]
        assert all(sizes(one)[2] >= 10 for one in found.values())


def test_brains_are_dealt_out_and_the_largest_hospital_sets_volumes_aside(tmp_path: Path) -> None:
    done = ingested(tmp_path / "out", "fed-ixi", real("brain"), "--images", real("brain") / "fed-ixi", "--silos", "2", "--skew", "3", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "are set aside for validation" in done.output


def test_a_brain_is_read_with_its_mask(tmp_path: Path) -> None:
    for subject in sorted((real("brain") / "fed-ixi").iterdir())[:4]:
        shutil.copytree(subject, tmp_path / "few" / subject.name)
    data = FedIxiData(layout="fed-ixi", root=tmp_path / "few", split_csv=real("brain") / "metadata_tiny.csv", hospital="HH")
    task = TaskConfig.model_validate({
        "name": "brain-segmentation", "image_size": 32, "volume": {"spacing": 6.0, "patch_size": 16, "window_size": 32}})
    found = load_silo_arrays(SiloConfig(name="hh", data=data, state=tmp_path / "state"), task)
    assert sum(sizes(found)) == 4
    assert 0.05 < found.training.labels_N.float().mean() < 0.6
