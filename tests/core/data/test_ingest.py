"""Every layout as datalists: the same items and the same arrays as read directly; leaks and broken files found by content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedhelp_core.config.silo import SiloConfig, load_silo
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.datalist import Manifest, manifest_of
from fedhelp_core.data.findings import remarks, summary
from fedhelp_core.data.ingest import Ingested, ingest, write_silos
from fedhelp_core.data.items import SPLITS
from fedhelp_core.data.phantom import chest_xray, fed_isic, fed_ixi, lungs
from fedhelp_core.data.public_layouts import Options, hospitals_of
from fedhelp_core.errors import ConfigError, DataError
from fedhelp_core.report.data_page import render, write_report
from tests.core.data.test_masks import write_series

MELANOMA = TaskConfig(name="melanoma", image_size=24)
PNEUMONIA = TaskConfig(name="pneumonia", image_size=24)
LUNGS = TaskConfig(name="lung-segmentation", image_size=32)
BRAINS = TaskConfig.model_validate({
    "name": "brain-segmentation", "image_size": 24, "volume": {"spacing": 9.0, "patch_size": 16, "window_size": 16}})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    fed_isic.write_fed_isic(
        folder / "isic", seed=4, sites=[fed_isic.Site(train=n, test=8, mix=(1,) * 8, camera=fed_isic.Camera()) for n in (12, 8)])
    chest_xray.write_chest_xray(folder / "chest" / "chest_xray", seed=4, counts={"training": (14, 16), "validation": (2, 2), "test": (7, 7)})
    lungs.write_lungs(folder / "lungs", seed=4, counts={"CHNCXR": 12, "MCUCXR": 12})
    fed_ixi.write_fed_ixi(folder / "heads", seed=4, counts={"Guys": (2, 1), "IOP": (2, 1)}, spacing=9.0)
    return folder


@pytest.fixture
def copy(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(drawn, tmp_path / "copy")
    return tmp_path / "copy"


# layout -> (task, folder below the drawn sets, options, silo -> the `data` of a silo.yaml that reads it directly)
DIRECT: dict[str, tuple[TaskConfig, str, Options, Callable[[Path], dict[str, dict[str, Any]]]]] = {
    "fed-isic2019": (MELANOMA, "isic", Options(validation_fraction=0.2), lambda root: {
        f"center-{center}": {"images": root / "images", "split_csv": root / "train_test_split.csv", "center": center, "validation_fraction": 0.2}
        for center in range(2)}),
    "chest-xray": (PNEUMONIA, "chest", Options(sizes=(3, 1)), lambda root: {
        f"hospital-{number}": {"root": root / "chest_xray", "share": {"number": number, "sizes": (3, 1)}} for number in range(2)}),
    "pictures-and-masks": (LUNGS, "lungs", Options(prefixes=("CHNCXR", "MCUCXR"), test_fraction=0.4), lambda root: {
        prefix.lower(): {"images": root / "images", "masks": root / "masks", "prefix": prefix, "test_fraction": 0.4}
        for prefix in ("CHNCXR", "MCUCXR")}),
    "fed-ixi": (BRAINS, "heads", Options(), lambda root: {
        hospital.lower(): {"root": root / "subjects", "split_csv": root / "metadata_tiny.csv", "hospital": hospital}
        for hospital in ("Guys", "IOP")}),
}


def ingested(layout: str, folder: Path, task: TaskConfig, options: Options | None = None, **how: Any) -> Ingested:
    return ingest(hospitals_of(layout, folder, task, options or Options()), task, **how)


@pytest.mark.slow
@pytest.mark.parametrize("layout", DIRECT)
def test_a_datalist_gives_what_the_layout_gives_directly(layout: str, drawn: Path, tmp_path: Path) -> None:
    task, name, options, direct = DIRECT[layout]
    found = ingested(layout, drawn / name, task, options)
    paths = write_silos(tmp_path / "out", found, task)

    silos = direct(drawn / name)
    assert [path.stem for path in paths] == list(silos)
    for path in paths:
        expected = SiloConfig.model_validate({"name": path.stem, "state": tmp_path / "direct", "data": {"layout": layout, **silos[path.stem]}})
        mine, theirs = load_silo(path), expected
        assert mine.data.layout == "datalist"
        for split in SPLITS:
            assert getattr(manifest_of(mine, task), split) == getattr(manifest_of(theirs, task), split)
        left, right = load_silo_arrays(mine, task), load_silo_arrays(theirs, task)
        for split in SPLITS:
            assert torch.equal(getattr(left, split).images_NCHW, getattr(right, split).images_NCHW)
            assert torch.equal(getattr(left, split).labels_N, getattr(right, split).labels_N)


@pytest.mark.slow
def test_dicom_series_and_their_masks_become_a_datalist(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for subject in range(8):
        write_series(tmp_path / "images" / f"s{subject}", rng.integers(0, 900, (12, 10, 9), dtype=np.uint16))
        mask = np.zeros((12, 10, 9), np.uint16)
        mask[3:9, 3:8, 2:7] = 1
        write_series(tmp_path / "masks" / f"s{subject}", mask)
    found = ingested("volumes-and-masks", tmp_path, BRAINS, Options(test_fraction=0.4))
    (path,) = write_silos(tmp_path / "out", found, BRAINS)

    arrays = load_silo_arrays(load_silo(path), BRAINS)
    assert len(arrays.training.labels_N) + len(arrays.test.labels_N) == 8
    facts = summary(found.report)["silos"]["hospital-0"]["training"]
    assert facts["spacings_mm"] == {"2 x 2 x 3": facts["images"]}
    assert facts["orientations"] == {"LPS": facts["images"]}
    assert facts["sizes"] == {"12 x 10 x 9": facts["images"]}
    assert facts["intensity"]["highest"] < 900
    assert facts["foreground"]["median"] == round(6 * 5 * 5 / (12 * 10 * 9), 4)


@pytest.mark.slow
def test_a_volume_without_a_mask_is_named(copy: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for number, subject in enumerate(sorted((copy / "heads" / "subjects").iterdir())):
        shutil.copy(next((subject / "T1").iterdir()), tmp_path / "set" / "images" / f"{number}.nii.gz")
        if number:
            shutil.copy(next((subject / "label").iterdir()), tmp_path / "set" / "masks" / f"{number}.nii.gz")
    found = ingested("volumes-and-masks", tmp_path / "set", BRAINS)
    assert "images/0.nii.gz: has no mask 0 in" in found.refused[0]


def listed(folder: Path, rows: str, **options: Any) -> dict[str, Any]:
    (folder / "list.csv").write_text(rows, encoding="utf-8")
    return hospitals_of("csv", folder, PNEUMONIA, Options(**options))


@pytest.fixture
def own(copy: Path) -> Path:
    """A folder with 20 pictures of a hospital's own."""
    folder = copy / "chest" / "chest_xray"
    pictures = sorted((folder / "train").rglob("*.jpeg"))[:20]
    target = copy / "own"
    target.mkdir()
    for number, path in enumerate(pictures):
        shutil.copy(path, target / f"{number}.jpeg")
    return target


def test_a_hospitals_own_csv_is_read_by_name_or_number_with_commas_or_semicolons(own: Path) -> None:
    by_name = listed(own, "image,label,split\n0.jpeg,Normal,train\n1.jpeg,pneumonia,train\n2.jpeg,normal,test\n")
    by_number = listed(own, "Datei;Befund;Teil\n0.jpeg;0;training\n1.jpeg;1;training\n2.jpeg;0;TEST\n",
                       columns={"image": "Datei", "label": "Befund", "split": "Teil"})
    assert list(by_name) == list(by_number) == ["hospital-0"]
    for split in SPLITS:
        assert getattr(by_name["hospital-0"].manifest, split) == getattr(by_number["hospital-0"].manifest, split)
    assert [item.label for item in by_name["hospital-0"].manifest.training] == [0, 1]


def test_without_a_split_patients_are_dealt_whole(own: Path) -> None:
    rows = "".join(f"{n}.jpeg,{n % 2},p{n // 2}\n" for n in range(20))
    one = listed(own, "image,label,patient\n" + rows, test_fraction=0.5, silos=("charite",))["charite"]
    patients = {split: {one.manifest.subjects[item.image] for item in getattr(one.manifest, split)} for split in SPLITS}
    assert patients["training"]
    assert patients["test"]
    assert not patients["training"] & patients["test"]
    assert sum(len(items) for _, items in one.manifest.splits()) == 20


def test_a_column_of_hospitals_makes_silos(own: Path) -> None:
    assert list(listed(own, "image,label,hospital\n0.jpeg,0,St. Georg\n1.jpeg,1,Ost\n")) == ["st-georg", "ost"]


@pytest.mark.parametrize(("rows", "said"), [
    ("image,label\n0.jpeg,flu\n", "line 2: label should be one of normal, pneumonia or its number from 0, got 'flu'"),
    ("image,label\n0.jpeg,2\n", "line 2: label should be one of"),
    ("image,label\n0.jpeg,\n", "line 2: label is empty"),
    ("image,label\n,1\n", "line 2: image is empty"),
    ("image,label\n../0.jpeg,1\n", "line 2: image should lie below"),
    ("image,label\n/etc/passwd,1\n", "line 2: image should lie below"),
    ("image,label,split\n0.jpeg,1,dev\n", "line 2: split should be training, validation or test, got 'dev'"),
])
def test_a_row_that_cannot_be_used_is_named_by_its_line(rows: str, said: str, own: Path) -> None:
    (problem,) = listed(own, rows)["hospital-0"].manifest.problems
    assert said in problem


@pytest.mark.parametrize(("rows", "options", "said"), [
    ("image,class\n0.jpeg,1\n", {}, "columns image, label expected, but label missing (found image, class); name yours with --columns"),
    ("image,label\n", {}, "has no row"),
    ("", {}, "columns image, label expected"),
    ("image,label\n0.jpeg,1\n", {"csv": Path("none.csv")}, "no such CSV; give its path with --csv"),
    ("image,label\n0.jpeg,1\n", {"columns": {"picture": "image"}}, "'picture' is none of image, label"),
    ("image,label\n0.jpeg,1\n", {"columns": {"label": "Dx"}}, "but Dx missing"),
    ("image,label\n0.jpeg,1\n", {"silos": ("a", "b")}, "2 names given for 1 hospitals"),
    ("image,label\n0.jpeg,1\n", {"silos": ("Charité",)}, "silo name 'Charité': lower-case letters"),
    ("image,label,hospital\n0.jpeg,1,a.b\n1.jpeg,1,a b\n", {}, "cannot be told apart as silo names"),
])
def test_a_csv_that_cannot_be_used_is_one_sentence(rows: str, options: dict[str, Any], said: str, own: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        listed(own, rows, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layout", "folder", "task", "options", "said"), [
    ("dicom", "isic", MELANOMA, {}, "layout 'dicom': one of fed-isic2019, chest-xray"),
    ("chest-xray", "chest", PNEUMONIA, {"prefixes": ("A",)}, "--prefixes: layout chest-xray does not take it; it takes --images-each, --silos"),
    ("chest-xray", "chest", LUNGS, {}, "layout chest-xray has no answers of the kind that lung-segmentation needs"),
    ("chest-xray", "isic", PNEUMONIA, {}, "train|val|test / NORMAL|PNEUMONIA expected"),
    ("chest-xray", "nowhere", PNEUMONIA, {}, "no such folder; give the folder that holds the paediatric chest X-rays"),
    ("fed-isic2019", "chest", MELANOMA, {}, "one CSV with columns image, target, center, fold expected in it, found none"),
    ("fed-isic2019", "two", MELANOMA, {}, "found a.csv, b.csv; give it with --split-csv"),
    ("fed-ixi", "heads", BRAINS, {"images": Path("none")}, "no subject folder like IXI002-Guys-0828"),
    ("pictures-and-masks", "lungs", LUNGS, {"prefixes": ("A",), "sizes": (1.0,)}, "give one of them"),
    ("pictures-and-masks", "lungs", LUNGS, {"prefixes": ("XYZ",)}, "no picture (.jpeg, .jpg, .png) whose name begins with 'XYZ'"),
    ("pictures-and-masks", "heads", LUNGS, {}, "heads/images: no such folder"),
    ("volumes-and-masks", "lungs", BRAINS, {"images": Path("none")}, "no such folder; give it with --images"),
    ("volumes-and-masks", "lungs", BRAINS, {}, "no volume, neither a folder of DICOM slices nor a NIfTI file"),
])
def test_what_cannot_be_a_layout_is_one_sentence(
    layout: str, folder: str, task: TaskConfig, options: dict[str, Any], said: str, copy: Path,
) -> None:
    (copy / "two").mkdir()
    for name in ("a.csv", "b.csv"):
        shutil.copy(copy / "isic" / "train_test_split.csv", copy / "two" / name)
    with pytest.raises((ConfigError, DataError)) as caught:
        hospitals_of(layout, copy / folder, task, Options(**options))
    assert said in str(caught.value)


def twin(folder: Path, *, training: str = "train", other: str = "test") -> tuple[Path, Path]:
    """A training picture of the chest set, and a copy of it under another name in another split."""
    source = sorted((folder / training / "NORMAL").iterdir())[0]
    target = folder / other / "NORMAL" / "IM-9999-0001.jpeg"
    shutil.copy(source, target)
    return source, target


def test_the_same_picture_in_training_and_test_is_refused_unless_a_side_is_named(copy: Path, tmp_path: Path) -> None:
    source, target = twin(copy / "chest" / "chest_xray")
    refused = ingested("chest-xray", copy / "chest", PNEUMONIA, Options(sizes=(3, 1)))
    assert len(refused.refused) == 2
    assert f"training {source.name}" in refused.refused[0]
    assert f"test {target.name}" in refused.refused[0]
    assert "--drop-leaked training or --drop-leaked test" in refused.refused[1]
    with pytest.raises(DataError, match="the same picture is in training and test"):
        write_silos(tmp_path / "out", refused, PNEUMONIA)
    assert not (tmp_path / "out").exists()

    for side, gone in (("training", source), ("test", target)):
        kept = ingested("chest-xray", copy / "chest", PNEUMONIA, Options(sizes=(3, 1)), drop_leaked=side)
        images = {item.image for manifest in kept.manifests.values() for _, items in manifest.splits() for item in items}
        assert kept.refused == ()
        assert {source, target} - images == {gone}
        assert kept.report.dropped == (next(one for one in kept.report.dropped if gone.name in one),)


def test_a_copy_saved_again_without_loss_is_found_in_another_hospital(copy: Path) -> None:
    names = sorted((copy / "lungs" / "images").glob("CHNCXR*"))
    by_split = hospitals_of("pictures-and-masks", copy / "lungs", LUNGS, Options(prefixes=("CHNCXR", "MCUCXR")))
    assert set(names) >= {item.image for item in by_split["chncxr"].manifest.training}
    source, target = by_split["chncxr"].manifest.training[0], by_split["mcucxr"].manifest.test[0]
    Image.open(source.image).convert("RGB").save(target.image, compress_level=9)
    assert source.image.read_bytes() != target.image.read_bytes()
    (sentence, _) = ingested("pictures-and-masks", copy / "lungs", LUNGS, Options(prefixes=("CHNCXR", "MCUCXR"))).refused
    assert f"chncxr training {source.image.name} = mcucxr test {target.image.name}" in sentence


def test_a_patient_in_training_and_test_is_refused(own: Path) -> None:
    rows = [f"{n}.jpeg,{n % 2},{'test' if n > 9 else 'train'},p{1 if n == 12 else n}\n" for n in range(20)]
    hospitals = listed(own, "image,label,split,patient\n" + "".join(rows))
    found = ingest(hospitals, PNEUMONIA)
    assert found.refused[0] == "the same patient or lesion, 'p1', is in training and test: hospital-0 training 1.jpeg, hospital-0 test 12.jpeg"
    dropped = ingest(hospitals, PNEUMONIA, drop_leaked="test").manifests["hospital-0"]
    assert len(dropped.training) == 10
    assert len(dropped.test) == 9


def test_a_picture_twice_in_training_is_told_not_refused(copy: Path) -> None:
    source, target = twin(copy / "chest" / "chest_xray", other="train")
    found = ingested("chest-xray", copy / "chest", PNEUMONIA)
    assert found.refused == ()
    assert any("there more than once in the same split" in remark for remark in remarks(found.report))
    assert summary(found.report)["duplicates"][0]["leaks"] is False
    assert {Path(place["image"]) for place in summary(found.report)["duplicates"][0]["places"]} == {source, target}


def test_a_picture_of_two_classes_is_told(copy: Path) -> None:
    root = copy / "chest" / "chest_xray"
    shutil.copy(sorted((root / "train" / "NORMAL").iterdir())[0], root / "train" / "PNEUMONIA" / "person9999_virus_1.jpeg")
    assert any(
        "the same picture is called normal and pneumonia" in remark for remark in remarks(ingested("chest-xray", copy / "chest", PNEUMONIA).report))


Damage = Callable[[Path], None]
BROKEN: dict[str, tuple[str, Damage]] = {
    "a file of no bytes": ("cannot be read as an image", lambda path: path.write_bytes(b"") and None),
    "half a file": ("cannot be read as an image", lambda path: path.write_bytes(path.read_bytes()[:200]) and None),
    "text with a picture's name": ("cannot be read as an image", lambda path: path.write_text("not a picture") and None),
    "a link to itself": ("cannot be read as an image", lambda path: (path.unlink(), path.symlink_to(path))[1]),
    "a link to nowhere": ("no such image file", lambda path: (path.unlink(), path.symlink_to("gone.jpeg"))[1]),
    "a folder with a picture's name": ("cannot be read as an image", lambda path: (path.unlink(), path.mkdir())[1]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_refused_or_left_out(name: str, copy: Path, tmp_path: Path) -> None:
    said, damage = BROKEN[name]
    path = sorted((copy / "chest" / "chest_xray" / "train" / "PNEUMONIA").iterdir())[3]
    damage(path)
    found = ingested("chest-xray", copy / "chest", PNEUMONIA)
    assert f"{path}: " in found.refused[0]
    assert said in found.refused[0]
    assert found.refused[1] == "mend or replace these, or leave them out with --drop-unusable"

    kept = ingested("chest-xray", copy / "chest", PNEUMONIA, drop_unusable=True)
    assert kept.refused == ()
    assert path.name in kept.report.unusable[0]
    for silo in write_silos(tmp_path / "out", kept, PNEUMONIA):
        load_silo_arrays(load_silo(silo), PNEUMONIA)


@pytest.mark.parametrize(("damage", "said"), [
    (lambda mask: Image.new("L", (8, 8), 255).save(mask), "both must have the same grid"),
    (lambda mask: Image.new("L", (112, 96)).save(mask), "the mask is empty"),
    (lambda mask: mask.unlink(), "has no mask"),
])
def test_a_mask_that_does_not_belong_to_its_picture_is_refused(damage: Damage, said: str, copy: Path) -> None:
    damage(sorted((copy / "lungs" / "masks").iterdir())[2])
    assert said in ingested("pictures-and-masks", copy / "lungs", LUNGS, Options(prefixes=("CHNCXR", "MCUCXR"))).refused[0]


def test_a_hospital_with_nothing_left_to_train_on_is_refused(own: Path) -> None:
    found = ingest(listed(own, "image,label,split\n0.jpeg,0,test\n1.jpeg,1,test\n"), PNEUMONIA)
    assert found.refused == (f"silo hospital-0: {own / 'list.csv'}: at least 2 training images expected, got 0",)


def test_one_class_alone_is_told_and_so_are_16_bits(own: Path) -> None:
    rows = "image,label,split\n" + "".join(f"{n}.jpeg,0,{'test' if n > 7 else 'train'}\n" for n in range(10)) + "deep.png,0,train\n"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(own / "deep.png")
    found = ingest(listed(own, rows), PNEUMONIA)
    assert list(remarks(found.report)) == [
        "silo hospital-0: no training image of pneumonia",
        "silo hospital-0: test has images of normal alone; AUROC is undefined there, and balanced accuracy is of that class",
        "silo hospital-0: 1 of 11 images have 16 bits a pixel, 16 of them in use; all are scaled by these 16"]


@pytest.mark.slow
def test_mixed_spacings_are_told(copy: Path) -> None:
    subjects = copy / "heads" / "subjects"
    guys, iop = (next(subjects.glob(f"IXI*-{hospital}-*")) for hospital in ("Guys", "IOP"))
    for part in ("T1", "label"):
        shutil.copy(next((iop / part).iterdir()), next((guys / part).iterdir()))
    found = ingested("fed-ixi", copy / "heads", BRAINS, drop_leaked="test")
    assert any("silo guys: volumes have 2 different spacings and orientations" in remark for remark in remarks(found.report))


def test_the_report_counts_what_is_there(copy: Path, tmp_path: Path) -> None:
    found = ingested("fed-isic2019", copy / "isic", MELANOMA, Options(validation_fraction=0.0))
    write_report(tmp_path, found.report)
    facts = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    training = facts["silos"]["center-0"]["training"]
    assert training["images"] == 12
    assert sum(training["classes"].values()) == 12
    assert training["balance"] == pytest.approx(min(training["classes"].values()) / max(training["classes"].values()), abs=1e-4)
    assert training["sizes"] == {"80 x 64": 12}
    assert training["kinds"] == {"RGB": 12}
    assert 0 <= training["intensity"]["lowest"] < training["intensity"]["mean"]["median"] < training["intensity"]["highest"] <= 255
    assert facts["duplicates"] == facts["refused"] == facts["unusable"] == []


def test_the_page_shows_pictures_and_escapes_names(own: Path) -> None:
    shutil.move(own / "0.jpeg", own / "<b>0.jpeg")
    (own / "<i>.jpeg").write_bytes(b"")
    page = render(ingest(listed(own, "image,label,split\n<b>0.jpeg,0,train\n1.jpeg,1,train\n2.jpeg,0,test\n<i>.jpeg,0,train\n"), PNEUMONIA).report)
    assert page.count('src="data:image/png;base64,') == 2
    assert "<b>0" not in page
    assert "&lt;i&gt;.jpeg: cannot be read as an image" in page
    assert "<script" not in page


def test_the_same_again_writes_the_same_and_a_changed_silo_yaml_is_not_overwritten(drawn: Path, tmp_path: Path) -> None:
    def made() -> dict[Path, bytes]:
        found = ingested("chest-xray", drawn / "chest", PNEUMONIA)
        write_report(tmp_path, found.report)
        write_silos(tmp_path, found, PNEUMONIA)
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert made() == made()
    path = tmp_path / "silos" / "hospital-3.yaml"
    path.write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"hospital-3.yaml: is there with other content; delete it, or give another folder with --out"):
        made()
    assert path.read_text(encoding="utf-8") == "name: mine\n"


def test_monai_reads_the_datalist(drawn: Path, tmp_path: Path) -> None:
    found = ingested("chest-xray", drawn / "chest", PNEUMONIA)
    write_silos(tmp_path, found, PNEUMONIA)
    document = json.loads((tmp_path / "datalists" / "hospital-0.json").read_text(encoding="utf-8"))
    manifest: Manifest = found.manifests["hospital-0"]
    assert set(document) == {*SPLITS, "classes"}
    assert document["classes"] == ["normal", "pneumonia"]
    assert len(document["training"]) == len(manifest.training)
    assert all(set(row) == {"image", "label"} for row in document["training"])
