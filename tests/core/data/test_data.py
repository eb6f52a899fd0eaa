"""A silo's images: Fed-ISIC2019's layout and MONAI datalists, everything wrong listed at once, decoded once."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.silo import DatalistData, FedIsicData, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.datalist import manifest_of, write_datalist
from fedhelp_core.data.phantom.dermoscopy import LESIONS, PUBLIC_LESIONS, Camera, draw
from fedhelp_core.data.phantom.fed_isic import PUBLIC, SITES, write_fed_isic
from fedhelp_core.errors import DataError

TASK = TaskConfig(image_size=16)
SMALL_SITES = tuple(replace(site, train=10, test=9) for site in SITES[:2])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_fed_isic(folder, seed=3, sites=SMALL_SITES)
    return folder


def silo(folder: Path, state: Path, center: int = 0, **more: object) -> SiloConfig:
    data = FedIsicData(layout="fed-isic2019", images=folder / "images", split_csv=folder / "train_test_split.csv", center=center, **more)
    return SiloConfig(name="amsterdam", data=data, state=state)


def rewrite(folder: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    path = folder / "train_test_split.csv"
    with path.open(newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def copy(drawn: Path, tmp_path: Path) -> Path:
    """A drawn folder that a test may damage."""
    folder = tmp_path / "copy"
    (folder / "images").mkdir(parents=True)
    for path in [*drawn.glob("images/*.jpg"), drawn / "train_test_split.csv"]:
        (folder / path.relative_to(drawn)).write_bytes(path.read_bytes())
    return folder


class TestFedIsic:
    def test_only_the_centers_own_rows_are_read(self, drawn: Path, tmp_path: Path) -> None:
        first = manifest_of(silo(drawn, tmp_path), TASK)
        second = manifest_of(silo(drawn, tmp_path, center=1), TASK)
        assert len(first.training) + len(first.validation) == 10
        assert len(first.test) == 9
        assert not {i.image for _, items in first.splits() for i in items} & {i.image for _, items in second.splits() for i in items}

    def test_what_is_held_out_depends_on_names_alone(self, copy: Path, tmp_path: Path) -> None:
        half = silo(copy, tmp_path, validation_fraction=0.5)
        before = manifest_of(half, TASK)
        assert len(before.validation) > 0
        rewrite(copy, lambda rows: rows[::-1])
        after = manifest_of(half, TASK)
        assert set(after.validation) == set(before.validation)
        assert not set(before.validation) & set(before.training)

    def test_the_benchmarks_own_csv_is_read_as_it_is(self, copy: Path, tmp_path: Path) -> None:
        """FLamby's file has an index column, and numbers as pandas writes them."""
        rewrite(copy, lambda rows: [{"": str(i), **row, "target": f"{float(row['target'])}"} for i, row in enumerate(rows)])
        assert len(manifest_of(silo(copy, tmp_path), TASK).test) == 9

    @pytest.mark.parametrize(("change", "words"), [
        (lambda rows: [{**r, "target": "8"} for r in rows], "has label 8, expected 0 to 7"),
        (lambda rows: [{**r, "target": "mel"} for r in rows], "target should be a class number, got 'mel'"),
        (lambda rows: [{**r, "target": "nan"} for r in rows], "target should be a class number, got 'nan'"),
        (lambda rows: [{**r, "fold": "valid"} for r in rows], "fold should be train or test, got 'valid'"),
        (lambda rows: [{**r, "image": "../" + r["image"]} for r in rows], "plain file name"),
        (lambda rows: [{**r, "center": "7"} for r in rows], "no row has center 0"),
        (lambda rows: [{k: v for k, v in r.items() if k != "fold"} for r in rows], "but fold missing"),
        (lambda rows: rows + rows, "is listed 2x in"),
        (lambda rows: [r for r in rows if r["fold"] == "train"], "at least 1 test image expected, got none"),
        (lambda rows: [r for r in rows if r["fold"] == "test"], "at least 2 training images expected, got 0"),
    ])
    def test_wrong_rows_are_named(
        self, copy: Path, tmp_path: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], words: str,
    ) -> None:
        rewrite(copy, change)
        with pytest.raises(DataError, match=words):
            manifest_of(silo(copy, tmp_path), TASK)

    def test_missing_paths_are_named(self, drawn: Path, tmp_path: Path) -> None:
        config = silo(drawn, tmp_path)
        for field, name in (("images", "data.images"), ("split_csv", "data.split_csv")):
            wrong = config.model_copy(update={"data": config.data.model_copy(update={field: tmp_path / "none"})})
            with pytest.raises(DataError, match=f"none: no such .* {name}"):
                manifest_of(wrong, TASK)

    def test_binary_rubbish_for_a_csv_is_a_data_error(self, copy: Path, tmp_path: Path) -> None:
        (copy / "train_test_split.csv").write_bytes(bytes(range(256)))
        with pytest.raises(DataError, match=r"train_test_split\.csv"):
            manifest_of(silo(copy, tmp_path), TASK)


class TestDatalist:
    def write(self, folder: Path, document: object) -> SiloConfig:
        path = folder / "datalist.json"
        path.write_text(json.dumps(document))
        return SiloConfig(name="espoo", data=DatalistData(layout="datalist", datalist=path), state=folder / "state")

    def test_a_manifest_survives_being_written(self, drawn: Path, tmp_path: Path) -> None:
        manifest = manifest_of(silo(drawn, tmp_path), TASK)
        path = drawn / "datalist.json"
        write_datalist(path, manifest, root=drawn)
        again = manifest_of(SiloConfig(name="a", data=DatalistData(layout="datalist", datalist=path), state=tmp_path), TASK)
        assert [(n, items) for n, items in again.splits()] == [(n, items) for n, items in manifest.splits()]

    @pytest.mark.slow
    def test_monai_reads_what_we_write(self, drawn: Path, tmp_path: Path) -> None:
        from monai.data import load_decathlon_datalist

        manifest = manifest_of(silo(drawn, tmp_path), TASK)
        path = drawn / "for_monai.json"
        write_datalist(path, manifest, root=drawn)
        read = load_decathlon_datalist(str(path), data_list_key="training", base_dir=str(drawn))
        assert [(Path(row["image"]), row["label"]) for row in read] == [(item.image, item.label) for item in manifest.training]

    @pytest.mark.parametrize(("document", "words"), [
        ([], "a mapping with lists .* got list"),
        ({"training": {}}, "training should be a list, got dict"),
        ({"training": ["a.jpg"]}, r"training\[0\]: .* expected, got a.jpg"),
        ({"training": [{"image": "a.jpg"}]}, "a whole number expected, got None"),
        ({"training": [{"image": "a.jpg", "label": True}]}, "a whole number expected, got True"),
        ({"test": [{"image": "../../etc/passwd", "label": 1}]}, "lies outside"),
        ({"test": [{"image": "/etc/passwd", "label": 1}]}, "lies outside"),
        ({"training": [{"image": "a.jpg", "label": -1}, {"image": "b.jpg", "label": 1}], "test": [{"image": "c.jpg", "label": 1}]}, "has label -1"),
        ({"training": [{"image": "a.jpg", "label": 0}, {"image": "b.jpg", "label": 1}], "test": [{"image": "a.jpg", "label": 0}]},
         "1x in training, 1x in test"),
    ])
    def test_wrong_lists_are_named(self, tmp_path: Path, document: object, words: str) -> None:
        with pytest.raises(DataError, match=words):
            manifest_of(self.write(tmp_path, document), TASK)

    def test_not_json(self, tmp_path: Path) -> None:
        config = self.write(tmp_path, {})
        (tmp_path / "datalist.json").write_text("{")
        with pytest.raises(DataError, match="cannot be read as JSON"):
            manifest_of(config, TASK)


class TestArrays:
    def test_images_and_labels_as_they_lie_on_disk(self, drawn: Path, tmp_path: Path) -> None:
        config = silo(drawn, tmp_path)
        loaded, manifest = load_silo_arrays(config, TASK), manifest_of(config, TASK)
        assert loaded.training.images_NCHW.shape == (len(manifest.training), 3, 16, 16)
        assert loaded.test.labels_N.tolist() == [item.label for item in manifest.test]
        with Image.open(manifest.test[4].image) as image:
            assert np.abs(loaded.test.images_NCHW[4].numpy().mean((1, 2)) - np.asarray(image)[:, 8:72].mean((0, 1))).max() < 3

    def test_decoded_once_and_anew_when_a_file_changes(self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[int] = []
        real = decode.decode_all
        monkeypatch.setattr(decode, "decode_all", lambda paths, *how: decoded.append(len(paths)) or real(paths, *how))
        config = silo(copy, tmp_path / "state")
        first = load_silo_arrays(config, TASK)
        load_silo_arrays(config, TASK)
        assert sum(decoded) == 19
        path = manifest_of(config, TASK).test[0].image
        Image.new("RGB", (90, 70), (255, 0, 0)).save(path)
        changed = load_silo_arrays(config, TASK)
        assert sum(decoded) == 38
        assert changed.test.images_NCHW[0, 0].float().mean() > 240
        assert (changed.training.images_NCHW == first.training.images_NCHW).all()

    def test_a_damaged_cache_is_made_again(self, drawn: Path, tmp_path: Path) -> None:
        config = silo(drawn, tmp_path / "state")
        first = load_silo_arrays(config, TASK).test.images_NCHW.clone()
        (cache,) = (tmp_path / "state/cache").glob("arrays-*.safetensors")
        cache.write_bytes(cache.read_bytes()[:1000])
        assert (load_silo_arrays(config, TASK).test.images_NCHW == first).all()

    def test_old_caches_do_not_pile_up(self, drawn: Path, tmp_path: Path) -> None:
        for size in (8, 9, 10, 11):
            load_silo_arrays(silo(drawn, tmp_path), TaskConfig(image_size=size))
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_every_bad_image_is_listed(self, copy: Path, tmp_path: Path) -> None:
        items = manifest_of(silo(copy, tmp_path), TASK).training
        items[0].image.write_bytes(items[0].image.read_bytes()[:200])
        items[1].image.write_bytes(b"GIF89a")
        with pytest.raises(DataError) as caught:
            load_silo_arrays(silo(copy, tmp_path), TASK)
        assert [path.name in problem for path, problem in zip((items[0].image, items[1].image), caught.value.problems, strict=True)] == [True, True]

    def test_missing_files_are_found_before_decoding(self, copy: Path, tmp_path: Path) -> None:
        items = manifest_of(silo(copy, tmp_path), TASK).training
        items[0].image.unlink()
        with pytest.raises(DataError, match=f"{items[0].image.name}: no such image file"):
            load_silo_arrays(silo(copy, tmp_path), TASK)

    def test_many_problems_of_one_kind_are_one_line(self, copy: Path, tmp_path: Path) -> None:
        rewrite(copy, lambda rows: [{**rows[0], "image": f"x{i}", "target": "99"} for i in range(70)])
        with pytest.raises(DataError) as caught:
            manifest_of(silo(copy, tmp_path), TASK)
        assert "has label 99, expected 0 to 7 (task.classes) (and 55 more alike: x1.jpg, x2.jpg, x3.jpg, ...)" in caught.value.problems[0]
        assert len(caught.value.problems) == 3  # of training, of validation, no test image

    def test_a_wrong_folder_is_one_line_a_silo(self, copy: Path, tmp_path: Path) -> None:
        for path in (copy / "images").iterdir():
            path.unlink()
        with pytest.raises(DataError, match=r"no such image file .* \(and 18 more alike: ISIC_") as caught:
            load_silo_arrays(silo(copy, tmp_path), TASK)
        assert len(caught.value.problems) == 1


class TestPhantom:
    def test_the_same_seed_draws_the_same_files(self, drawn: Path, tmp_path: Path) -> None:
        write_fed_isic(tmp_path, seed=3, sites=SMALL_SITES)
        for path in sorted(drawn.glob("images/*.jpg")):
            assert (tmp_path / "images" / path.name).read_bytes() == path.read_bytes()
        write_fed_isic(tmp_path / "other", seed=4, sites=SMALL_SITES)
        assert (tmp_path / "other/images/ISIC_0000000.jpg").read_bytes() != (tmp_path / "images/ISIC_0000000.jpg").read_bytes()

    def test_every_site_has_every_class_in_both_folds(self) -> None:
        from fedhelp_core.data.phantom.fed_isic import _labels

        for site in SITES:
            for count in (site.train, site.test):
                labels = _labels(count, site.mix, np.random.default_rng(0))
                assert len(labels) == count
                assert set(labels) == set(range(8))

    def test_classes_and_sites_can_be_seen(self) -> None:
        """Mean images of two classes differ, and so do those of one class at two sites."""

        def mean(name: str, camera: Camera) -> np.ndarray:
            return np.mean([draw(LESIONS[name], camera, np.random.default_rng(i)) for i in range(40)], axis=0)

        assert np.abs(mean("melanoma", SITES[0].camera) - mean("dermatofibroma", SITES[0].camera)).mean() > 4
        assert np.abs(mean("nevus", SITES[0].camera) - mean("nevus", SITES[2].camera)).mean() > 8

    def test_public_classes_are_others(self, tmp_path: Path) -> None:
        assert not set(PUBLIC_LESIONS) & set(LESIONS)
        assert not set(PUBLIC_LESIONS.values()) & set(LESIONS.values())
        PUBLIC.write(tmp_path, count=5, seed=1)
        assert len(list(tmp_path.glob("*.jpg"))) == 5
