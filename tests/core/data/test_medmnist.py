"""MedMNIST's npz: its splits, labels and images, flat and solid, grey and in colour; and what is no such file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from fedhelp_cli.main import main
from fedhelp_core.config.federation import load_federation
from fedhelp_core.config.silo import load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.medmnist import LABELS, read_medmnist
from fedhelp_core.errors import DataError

Arrays = dict[str, NDArray[np.generic]]


def arrays(shape: tuple[int, ...], classes: int, counts: tuple[int, int, int] = (40, 12, 12)) -> Arrays:
    rng = np.random.default_rng(5)
    found: Arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        found[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return found


def written(path: Path, found: Arrays) -> Path:
    np.savez_compressed(path, **found)
    return path


@pytest.mark.parametrize(("name", "shape", "expected"), [
    ("pneumoniamnist", (28, 28), lambda image: image),
    ("pneumoniamnist_64", (64, 64), lambda image: image),
    ("bloodmnist", (28, 28, 3), lambda image: image),
    ("nodulemnist3d", (28, 28, 28), lambda image: np.stack((image[14], image[:, 14], image[:, :, 14]), axis=-1)),
])
def test_images_become_pictures_with_the_labels_names(name: str, shape: tuple[int, ...], expected: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
                                                      tmp_path: Path) -> None:
    found = arrays(shape, len(LABELS[name.removesuffix("_64")]))
    archive = read_medmnist(written(tmp_path / f"{name}.npz", found))
    assert archive.classes == LABELS[name.removesuffix("_64")]
    archive.unpack(tmp_path / "out")
    items = archive.items(tmp_path / "out")
    assert {split: len(part) for split, part in items.items()} == {"training": 40, "validation": 12, "test": 12}
    for split, short in (("training", "train"), ("test", "test")):
        assert [item.label for item in items[split]] == found[f"{short}_labels"].flatten().tolist()
        for item, image in zip(items[split][:3], found[f"{short}_images"], strict=False):
            assert np.array_equal(np.asarray(Image.open(item.image)), expected(image.astype(np.uint8)))


def test_a_set_is_dealt_out_and_read_back_and_the_same_command_writes_the_same(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    written(tmp_path / "set" / "pneumoniamnist.npz", arrays((28, 28), 2, (60, 20, 24)))
    command = ["data", "ingest", "medmnist", str(tmp_path / "set"), "--silos", "3", "--skew", "3", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert CliRunner().invoke(main, command).exit_code == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    sizes = []
    for number in range(3):
        silo = load_silo_arrays(load_silo(tmp_path / "out" / "silos" / f"hospital-{number}.yaml"), TaskConfig(name="pneumonia", image_size=28))
        sizes.append(len(silo.training.labels_N) + len(silo.validation.labels_N))
        assert set(silo.training.labels_N.tolist()) == {0, 1}
    assert sum(sizes) == 80
    assert sizes[0] > 2 * sizes[2]


def test_other_classes_than_the_tasks_stand_in_federation_yaml(tmp_path: Path) -> None:
    written(tmp_path / "bloodmnist.npz", arrays((28, 28, 3), 8))
    result = CliRunner().invoke(main, ["data", "ingest", "medmnist", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert load_federation(tmp_path / "out/federation.yaml").task.classes[:2] == ("basophil", "eosinophil")


def test_a_dry_run_writes_no_picture(tmp_path: Path) -> None:
    written(tmp_path / "pneumoniamnist.npz", arrays((28, 28), 2))
    result = CliRunner().invoke(main, ["data", "ingest", "medmnist", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()


def without(found: Arrays, name: str) -> Arrays:
    return {key: value for key, value in found.items() if key != name}


@pytest.mark.parametrize(("change", "said"), [
    (lambda found: without(found, "train_labels"), "but train_labels is missing (found train_images, val_images"),
    (lambda found: {**found, "val_labels": found["val_labels"][:5]}, "val_images has 12 rows, val_labels 5"),
    (lambda found: {**found, "train_labels": np.ones((40, 14), np.uint8)}, "train_labels has 14 labels an image; one expected"),
    (lambda found: {**found, "train_labels": np.full((40, 1), 7, np.uint8)}, "has label 7, but the set has 2 classes: normal, pneumonia"),
    (lambda found: {**found, "train_labels": np.full((40, 1), -1, np.int8)}, "train_labels has label -1; class numbers from 0 expected"),
    (lambda found: {**found, "train_labels": np.full((40, 1), 0.5)}, "train_labels should be class numbers, got float64"),
    (lambda found: {**found, "train_images": found["train_images"].astype(np.float32)}, "train_images should be bytes (N, H, W)"),
    (lambda found: {**found, "train_images": np.zeros((40, 28, 28, 2), np.uint8)}, "train_images should be bytes (N, H, W)"),
    (lambda found: {**found, "train_images": np.asfortranarray(found["train_images"])}, "train_images is in Fortran's order"),
    (lambda found: {**found, "train_images": np.array([None] * 40)}, "train_images should be bytes (N, H, W)"),
])
def test_what_is_no_set_of_one_label_an_image_is_one_sentence(change: Callable[[Arrays], Arrays], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "pneumoniamnist.npz", change(arrays((28, 28), 2)))
    with pytest.raises(DataError) as caught:
        read_medmnist(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [
    lambda body: b"",
    lambda body: b"no archive",
    lambda body: body[: len(body) // 2],
    lambda body: body[:200] + bytes([body[200] ^ 255, body[201] ^ 255]) + body[202:],
])
def test_a_damaged_archive_is_one_sentence(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays((28, 28), 2))
    path = tmp_path / "pneumoniamnist.npz"
    path.write_bytes(damage(buffer.getvalue()))
    with pytest.raises(DataError) as caught:
        read_medmnist(path).unpack(tmp_path / "out")
    assert "again" in str(caught.value)
    assert "\n" not in str(caught.value)
