"""The paediatric chest-X-ray set in its own layout: dealt out the same way everywhere, whole patients at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedhelp_core.config.silo import ChestXrayData, Share, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.chest_xray import patient_of
from fedhelp_core.data.datalist import Manifest, manifest_of
from fedhelp_core.data.phantom.chest import FINDINGS, PUBLIC_FINDINGS, Scanner, draw
from fedhelp_core.data.phantom.chest_xray import SCANNERS, write_chest_xray
from fedhelp_core.data.sharing import hand_sizes, owners
from fedhelp_core.errors import DataError

PNEUMONIA = TaskConfig(name="pneumonia")
COUNTS = {"training": (14, 16), "validation": (2, 2), "test": (7, 7)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chest") / "chest_xray"
    write_chest_xray(folder, seed=3, counts=COUNTS)
    return folder


def silo(root: Path, number: int, state: Path) -> SiloConfig:
    return SiloConfig(name="a", data=ChestXrayData(layout="chest-xray", root=root, share=Share(number=number)), state=state)


def manifests(root: Path, state: Path) -> list[Manifest]:
    return [manifest_of(silo(root, number, state), PNEUMONIA) for number in range(6)]


def test_every_image_falls_to_one_hospital_and_everybody_sees_both_classes(drawn: Path, tmp_path: Path) -> None:
    found = manifests(drawn, tmp_path)
    for split, (normal, pneumonia) in COUNTS.items():
        images = [item.image for one in found for item in getattr(one, split)]
        assert len(images) == len(set(images)) == normal + pneumonia
    for one in found:
        assert {item.label for item in one.training} == {item.label for item in one.test} == {0, 1}


def test_a_patients_images_are_never_parted(drawn: Path, tmp_path: Path) -> None:
    owner: dict[tuple[str, str], int] = {}
    for number, one in enumerate(manifests(drawn, tmp_path)):
        for split, items in one.splits():
            for item in items:
                assert owner.setdefault((split, patient_of(item.image.name)), number) == number


@pytest.mark.parametrize(("name", "patient"), [
    ("person12_bacteria_46.jpeg", "person12_bacteria"), ("person12_virus_46.jpeg", "person12_virus"),
    ("person447_virus_921_1.jpeg", "person447_virus"), ("IM-0543-0001-0002.jpeg", "IM-0543"), ("IM-0115-0001.jpeg", "IM-0115"),
    ("NORMAL2-IM-1427-0001.jpeg", "NORMAL2-IM-1427"), ("other.jpeg", "other.jpeg"),
])
def test_the_patient_is_read_from_the_sets_own_names(name: str, patient: str) -> None:
    assert patient_of(name) == patient


def test_training_hands_follow_the_sizes_and_test_hands_are_even() -> None:
    names = [f"p{i}" for i in range(600)]
    assert hand_sizes(600, (4, 1, 1)) == [399, 101, 100]
    assert sorted(owners(names, (4, 1, 1), "training").values()).count(0) == 399
    assert sorted(owners(names, (4, 1, 1), "test").values()).count(0) == 200
    assert hand_sizes(2, (5, 3, 1)) == [1, 1, 0]


def test_dealing_does_not_depend_on_the_order_of_names() -> None:
    names = [f"p{i}" for i in range(30)]
    assert owners(names, (2, 1), "training") == owners(reversed(names), (2, 1), "training")


def test_images_are_decoded_to_the_tasks_size(drawn: Path, tmp_path: Path) -> None:
    arrays = load_silo_arrays(silo(drawn, 0, tmp_path), TaskConfig(name="pneumonia", image_size=24))
    assert arrays.training.images_NCHW.shape[1:] == (3, 24, 24)
    assert set(arrays.training.labels_N.tolist()) == {0, 1}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "NORMAL").mkdir(parents=True)
    with pytest.raises(DataError, match=r"there is no .*train/PNEUMONIA, .*test/PNEUMONIA; correct data.root"):
        manifest_of(silo(tmp_path, 0, tmp_path), PNEUMONIA)


def test_a_zero_byte_image_is_named(drawn: Path, tmp_path: Path) -> None:
    write_chest_xray(tmp_path / "set", seed=3, counts={"training": (6, 6), "validation": (0, 0), "test": (6, 6)})
    damaged = manifest_of(silo(tmp_path / "set", 0, tmp_path), PNEUMONIA).training[0].image
    damaged.write_bytes(b"")
    with pytest.raises(DataError, match=f"{damaged.name}: cannot be read as an image"):
        load_silo_arrays(silo(tmp_path / "set", 0, tmp_path), TaskConfig(name="pneumonia", image_size=24))


def test_a_share_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 5 expected for 6 sizes, got 6"):
        Share(number=6)


def test_the_same_seed_draws_the_same_files(drawn: Path, tmp_path: Path) -> None:
    write_chest_xray(tmp_path / "again", seed=3, counts=COUNTS)
    for path in drawn.rglob("*.jpeg"):
        assert (tmp_path / "again" / path.relative_to(drawn)).read_bytes() == path.read_bytes()


def test_classes_and_scanners_can_be_seen_and_public_classes_are_others() -> None:
    def mean(name: str, scanner: Scanner) -> np.ndarray:
        return np.mean([draw(FINDINGS[name], scanner, np.random.default_rng(i))[0] for i in range(30)], axis=0)

    assert np.abs(mean("normal", Scanner()) - mean("pneumonia", Scanner())).mean() > 1
    assert np.abs(mean("normal", SCANNERS[0]) - mean("normal", SCANNERS[5])).mean() > 8
    assert not set(FINDINGS) & set(PUBLIC_FINDINGS)
    lungs = draw(FINDINGS["normal"], Scanner(), np.random.default_rng(0))[1]
    assert 0.1 < lungs.mean() < 0.5
