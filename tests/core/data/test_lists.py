"""Lists as spreadsheets write them and names as file systems keep them: the right image with the right label, or one sentence."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.silo import DatalistData, SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.datalist import manifest_of
from fedhelp_core.data.findings import remarks, rows_of, summary
from fedhelp_core.data.ingest import ingest, sampled, write_silos
from fedhelp_core.data.problems import grouped
from fedhelp_core.data.public_layouts import Hospital, Options, hospitals_of
from fedhelp_core.errors import ConfigError, DataError

PNEUMONIA = TaskConfig(name="pneumonia", image_size=24)
MELANOMA = TaskConfig(name="melanoma", image_size=24)
LUNGS = TaskConfig(name="lung-segmentation", image_size=24)
BRAINS = TaskConfig.model_validate({
    "name": "brain-segmentation", "image_size": 24, "volume": {"spacing": 9.0, "patch_size": 16, "window_size": 16}})
NFC, NFD = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng([seed, *path.name.encode("utf-8", "surrogateescape")])
    Image.fromarray(chance.integers(1, 255, (24, 24), np.uint8)).save(path, "PNG")
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = np.zeros((24, 24), np.uint8)
    marked[4:15, 2:9] = 255
    Image.fromarray(marked).save(path, "PNG")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for number in range(6):
        picture(tmp_path / "own" / "images" / f"{number}.png")
    return tmp_path / "own"


def read(folder: Path, text: str | bytes, task: TaskConfig = PNEUMONIA, **options: Any) -> dict[str, Hospital]:
    (folder / "list.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return hospitals_of("csv", folder, task, Options(**options))


def labels(one: Hospital) -> dict[str, int]:
    return {item.image.name: item.label for _, items in one.manifest.splits() for item in items}


PLAIN = "image,label,split\nimages/0.png,normal,train\nimages/1.png,pneumonia,train\nimages/2.png,normal,test\n"
RIGHT = {"0.png": 0, "1.png": 1, "2.png": 0}
SAME: dict[str, str | bytes] = {
    "plain": PLAIN,
    "a BOM": b"\xef\xbb\xbf" + PLAIN.encode(),
    "Windows' lines": PLAIN.replace("\n", "\r\n"),
    "old Macs' lines": PLAIN.replace("\n", "\r"),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "sep=;": "sep=;\r\n" + PLAIN.replace(",", ";"),
    "sep=; in quotes, with separators": '"sep=;";;\n' + PLAIN.replace(",", ";"),
    "sep=, after a BOM": b"\xef\xbb\xbfsep=,\n" + PLAIN.encode(),
    "UTF-16, as Excel's Unicode text": PLAIN.replace(",", "\t").encode("utf-16"),
    "everything in quotes": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in PLAIN.splitlines()),
    "separators at the ends of lines": PLAIN.replace("\n", ",,\n"),
    "separators at the ends of rows alone": PLAIN.replace("\nimages", ",\nimages")[::-1].replace("\n", "\n,", 1)[::-1],
    "blank rows": PLAIN + ",,\n\n , ,\n,,\n",
    "blank rows above the head": ",,\n\n,,\n" + PLAIN,
    "spaces around cells": PLAIN.replace(",", " , "),
    "a head in capitals": PLAIN.replace("image,label,split", "IMAGE,Label,Split"),
    "backslashes": PLAIN.replace("images/", "images\\"),
    "a dot before the folder": PLAIN.replace("images/", "./images/"),
    "endings in capitals": PLAIN.replace(".png", ".PNG"),
    "numbers": PLAIN.replace("normal", "0").replace("pneumonia", "1"),
    "numbers as pandas writes them": PLAIN.replace("normal", "0.0").replace("pneumonia", "1.0"),
    "names in capitals": PLAIN.replace("normal", "NORMAL").replace("pneumonia", "Pneumonia"),
    "an unnamed column of numbers": "\n".join(f"{i or ''},{line}" for i, line in enumerate(PLAIN.splitlines())),
    "unused columns of one name": "\n".join(f"{line},{'x' if i else 'note'},{'y' if i else 'note'}" for i, line in enumerate(PLAIN.splitlines())),
}


@pytest.mark.parametrize("name", SAME)
def test_spreadsheets_habits_give_the_same_images_and_labels(name: str, own: Path) -> None:
    found = read(own, SAME[name])
    assert list(found) == ["hospital-0"]
    assert found["hospital-0"].manifest.problems == ()
    assert labels(found["hospital-0"]) == RIGHT
    assert [item.image.name for item in found["hospital-0"].manifest.test] == ["2.png"]
    assert all(item.image.is_file() for _, items in found["hospital-0"].manifest.splits() for item in items)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("written", [NFC, NFD])
@pytest.mark.parametrize("kept", [NFC, NFD])
def test_names_with_accents_are_found_however_list_and_disk_write_them(encoding: str, written: str, kept: str, own: Path) -> None:
    if encoding == "cp1252" and written == NFD:
        pytest.skip("Windows-1252 has no accents by themselves")
    picture(own / "images" / kept / f"{kept}.PNG")
    found = read(own, PLAIN.encode() + f"images/{written}/{written}.png,1,train\n".encode(encoding))["hospital-0"]
    assert labels(found)[f"{kept}.PNG"] == 1
    assert bool([note for note in found.manifest.notes if "read as Windows-1252" in note]) == (encoding == "cp1252")


def test_a_name_that_is_no_utf8_is_a_problem_that_shows_it(own: Path) -> None:
    os.rename(own / "images" / "1.png", os.fsencode(own / "images") + b"/M\xfcller.png")
    (problem,) = read(own, PLAIN.replace("1.png", "Müller.png"))["hospital-0"].manifest.problems
    assert "images/M\\xfcller.png: its name is not UTF-8" in problem
    problem.encode()  # can be printed


AMBIGUOUS: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "a column twice": ("image,label,label\nimages/0.png,0,1\n", {}, "column label is there 2 times, so nobody knows which is meant; rename one"),
    "the image's column twice": ("image,image,label\nimages/0.png,images/1.png,1\n", {}, "column image is there 2 times"),
    "a mapped column twice": ("image,Dx,Dx\nimages/0.png,0,1\n", {"columns": {"label": "Dx"}}, "column Dx is there 2 times"),
    "two of ours from one of theirs": (
        "image,File,label\na,images/0.png,0\n", {"columns": {"image": "File", "patient": "File"}}, "column File would be image and patient"),
    "capitals alone": ("image,Label,LABEL\nimages/0.png,0,1\n", {}, "columns Label and LABEL differ in capitals alone; rename one"),
    "a workbook": (b"PK\x03\x04\x14\0\6\0", {}, "is an Excel or OpenDocument workbook, no CSV; save it as CSV UTF-8"),
    "an old workbook": (b"\xd0\xcf\x11\xe0\xa1\xb1", {}, "is an old Excel workbook"),
    "no text": (bytes(range(256)), {}, "cannot be read as CSV"),
    "a quote that never ends": ('image,label\n"images/0.png,0\nimages/1.png,1\n', {}, "cannot be read as CSV"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_list_whose_columns_are_not_clear_is_refused(name: str, own: Path) -> None:
    text, options, said = AMBIGUOUS[name]
    with pytest.raises(DataError) as caught:
        read(own, text, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("row", "said"), [
    ("images/0,5.png,normal,train", "line 5: has 4 cells, the head has 3; write cells with separators in them in quotes"),
    ("images/5.png,normal", "line 5: has 2 cells, the head has 3"),
    ("C:\\scans\\5.png,normal,train", "line 5: image should lie below"),
    ("..\\5.png,normal,train", "line 5: image should lie below"),
    ("\\\\server\\share\\5.png,normal,train", "line 5: image should lie below"),
    ("images/5.png,1.5,train", "line 5: label should be one of normal, pneumonia or its number from 0, got '1.5'"),
    ("images/5.png,-1,train", "got '-1'"),
    ("images/5.png,²,train", "got '²'"),
])
def test_a_row_that_is_not_clear_is_named_by_its_line(row: str, said: str, own: Path) -> None:
    (problem,) = read(own, PLAIN + row + "\n")["hospital-0"].manifest.problems
    assert said in problem


def test_blank_rows_are_no_hospital_and_a_row_without_one_is_named(own: Path) -> None:
    text = "hospital;image;label\nMitte;images/0.png;0\n;;\nNord;images/1.png;1\n;;;;\n"
    found = read(own, text)
    assert list(found) == ["mitte", "nord"]
    assert any("2 blank rows passed over" in note for note in found["mitte"].manifest.notes)
    (problem,) = read(own, text + ";images/2.png;0\n")["mitte"].manifest.problems
    assert problem.endswith("list.csv: line 6: hospital is empty")


HOSPITALS = "hospital,image,label,split\n" + "".join(
    f"{name},images/{number}.png,{number % 2},{'test' if number > 2 else 'train'}\n"
    for number, name in enumerate(["Süd Klinik", "Süd Klinik", "Süd Klinik", "Süd Klinik"]))


def three(own: Path) -> str:
    text = "hospital,image,label,split\n"
    for h, name in enumerate(["Mitte", "Süd Klinik", "Nord"]):
        for n in range(4):
            picture(own / "images" / f"{h}{n}.png")
            text += f"{name},images/{h}{n}.png,{n % 2},{'test' if n == 3 else 'train'}\n"
    return text


def test_hospitals_with_names_are_renamed_by_their_names_and_both_are_shown_everywhere(own: Path, tmp_path: Path) -> None:
    found = read(own, three(own), silos=("Nord=nord", "Mitte=mitte", "Süd Klinik=sued"))
    assert {silo: one.origin for silo, one in found.items()} == {"mitte": "Mitte", "sued": "Süd Klinik", "nord": "Nord"}
    assert all(item.image.name.startswith("1") for item in found["sued"].manifest.training)
    ingested = ingest(found, PNEUMONIA)
    assert rows_of(ingested.report)[2][0] == "sued (Süd Klinik)"
    assert summary(ingested.report)["origins"]["sued"] == "Süd Klinik"
    assert "# In the data set it is called Süd Klinik.\n" in write_silos(tmp_path / "out", ingested, PNEUMONIA)[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(("names", "said"), [
    (("mitte", "nord", "sued"), "say which is which, for instance Mitte=mitte,Süd Klinik=nord,Nord=sued, if that is right"),
    (("Mitte=mitte", "Nord=nord"), "a name for each hospital expected, THEIRS=yours, and the hospitals are Mitte, Süd Klinik, Nord"),
    (("Mitte=mitte", "Nord=nord", "West=west"), "a name for each hospital expected"),
    (("Mitte=mitte", "Nord=nord", "sued"), "a name for each hospital expected"),
    (("Mitte=a", "Nord=a", "Süd Klinik=b"), "names must differ from each other"),
    (("Mitte=Ä", "Nord=a", "Süd Klinik=b"), "silo name 'Ä': lower-case letters"),
])
def test_names_by_order_alone_are_refused_where_the_set_has_names(names: tuple[str, ...], said: str, own: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(own, three(own), silos=names)
    assert said in str(caught.value)


def test_umlauts_in_hospitals_names_become_letters(own: Path) -> None:
    assert list(read(own, HOSPITALS)) == ["sud-klinik"]


# datalists carry names


def written(own: Path, tmp_path: Path) -> Path:
    text = "image,label,split\n" + "".join(f"images/{n}.png,{n % 2},{'test' if n > 3 else 'train'}\n" for n in range(6))
    write_silos(tmp_path / "out", ingest(read(own, text), PNEUMONIA), PNEUMONIA)
    return tmp_path / "out" / "datalists" / "hospital-0.json"


def silo_of(path: Path, root: Path) -> SiloConfig:
    return SiloConfig(name="a", data=DatalistData(layout="datalist", datalist=path, root=root), state=root / "state")


def test_a_federation_whose_classes_are_in_another_order_is_refused(own: Path, tmp_path: Path) -> None:
    path = written(own, tmp_path)
    config = silo_of(path, own / "images")
    assert manifest_of(config, PNEUMONIA).classes == ("normal", "pneumonia")
    assert manifest_of(config, TaskConfig(name="pneumonia", classes=("Normal", "PNEUMONIA"))).classes == ("normal", "pneumonia")
    for other in (("pneumonia", "normal"), ("normal", "covid")):
        with pytest.raises(DataError, match=rf"its classes are normal, pneumonia, the federation's \(task.classes\) {', '.join(other)}"):
            manifest_of(config, TaskConfig(name="pneumonia", classes=other))
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["classes"]  # one that a hospital made by hand
    path.write_text(json.dumps(document), encoding="utf-8")
    assert manifest_of(config, TaskConfig(name="pneumonia", classes=("pneumonia", "normal"))).classes == ()


@pytest.mark.parametrize(("document", "said"), [
    ({"classes": "normal"}, "classes should be a list of names in the order of the labels, got normal"),
    ({"classes": [1, 2]}, "classes should be a list of names"),
    ({"pixel_bits": 13}, "pixel_bits should be one of 8, 10, 12, 14, 16, got 13"),
    ({"pixel_bits": []}, "pixel_bits should be one of"),
])
def test_what_a_datalist_says_of_itself_is_checked(document: dict[str, Any], said: str, own: Path, tmp_path: Path) -> None:
    path = written(own, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **document}), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        manifest_of(silo_of(path, own / "images"), PNEUMONIA)


def test_a_layout_whose_numbers_mean_other_classes_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for n, name in enumerate(("NORMAL", "PNEUMONIA")):
            for k in range(2):
                picture(tmp_path / "set" / split / name / f"person{n}{k}_{split}_1.jpeg")
    data = {"layout": "chest-xray", "root": tmp_path / "set", "share": {"number": 0, "sizes": (1,)}}
    config = SiloConfig.model_validate({"name": "a", "state": tmp_path, "data": data})
    assert len(manifest_of(config, PNEUMONIA).training) == 4
    assert len(manifest_of(config, TaskConfig(name="pneumonia", classes=("gesund", "krank"))).training) == 4
    with pytest.raises(DataError, match="the layout numbers classes normal, pneumonia, the federation"):
        manifest_of(config, TaskConfig(name="pneumonia", classes=("pneumonia", "normal")))


def test_paths_in_a_datalist_are_found_in_either_normal_form(tmp_path: Path) -> None:
    picture(tmp_path / NFD / "a.PNG")
    picture(tmp_path / "b.png")
    rows = [{"image": f"{NFC}/a.png", "label": 0}, {"image": "b.png", "label": 1}]
    (tmp_path / "list.json").write_text(json.dumps({"training": rows, "test": []}), encoding="utf-8")
    with pytest.raises(DataError, match="at least 1 test image") as caught:
        manifest_of(silo_of(tmp_path / "list.json", tmp_path), PNEUMONIA)
    assert len(caught.value.problems) == 1


# folders


def pictures_and_masks(folder: Path, names: dict[str, str]) -> Hospital:
    for image, answer in names.items():
        picture(folder / "images" / image)
        if answer:
            mask(folder / "masks" / answer)
    return hospitals_of("pictures-and-masks", folder, LUNGS, Options())["hospital-0"]


def test_masks_are_found_whatever_case_and_form_their_names_have(tmp_path: Path) -> None:
    found = pictures_and_masks(tmp_path, {"a.png": "a.PNG", "B.JPG": "B_mask.Png", f"{NFC}.png": f"{NFD}_mask.png", f"x{NFD}.PNG": f"x{NFC}.png"})
    assert found.manifest.problems == ()
    assert {item.image.name: item.mask and item.mask.name for _, items in found.manifest.splits() for item in items} == {
        "a.png": "a.PNG", "B.JPG": "B_mask.Png", f"{NFC}.png": f"{NFD}_mask.png", f"x{NFD}.PNG": f"x{NFC}.png"}


def test_nothing_in_a_folder_is_left_out_without_a_word(tmp_path: Path) -> None:
    for name in ("b.tif", "c.GIF", "d.dcm", "README.txt", ".hidden.png"):
        picture(tmp_path / "images" / name)
    os.rename(picture(tmp_path / "images" / "e.png"), os.fsencode(tmp_path / "images") + b"/M\xfcller.png")
    picture(tmp_path / "images" / f"{NFC}.png")
    mask(tmp_path / "masks" / f"{NFC}.png")
    picture(tmp_path / "images" / f"{NFD}.png")
    found = pictures_and_masks(tmp_path, {"a.png": "a.png"}).manifest
    problems = "\n".join(found.problems)
    for said in ("b.tif: is left out, for only .jpeg, .jpg, .png are read here", "c.GIF: is left out", "d.dcm: is left out",
                 "M\\xfcller.png: its name is not UTF-8", "has the same name as"):
        assert said in problems
    assert len(found.problems) == 5
    assert found.notes == (f"{tmp_path / 'images'}: no images, left alone: README.txt",)
    assert any("left alone: README.txt" in remark for remark in remarks(ingest({"a": Hospital(found)}, LUNGS, drop_unusable=True).report))


def test_volumes_in_capitals_are_found_and_other_formats_are_named(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in ("a.NII.GZ", "b.nii", f"{NFC if part == 'images' else NFD}.Nii", "c.DCM"):
            (tmp_path / part / name).write_bytes(b"")
    for name in ("d.mha", "e.hdr", "e.img", "b.nii.gz"):
        (tmp_path / "images" / name).write_bytes(b"")
    found = hospitals_of("volumes-and-masks", tmp_path, BRAINS, Options())["hospital-0"].manifest
    assert sorted(item.image.name for _, items in found.splits() for item in items) == sorted(["a.NII.GZ", "b.nii", f"{NFC}.Nii", "c.DCM"])
    said = "\n".join(found.problems)
    assert "d.mha: is left out" in said and "e.hdr: is left out" in said and "e.img: is left out" in said
    assert "b.nii.gz: has the same name as b.nii, so nobody knows which is meant" in said


def test_fed_isics_images_may_end_in_capitals(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.jpg"):
        picture(tmp_path / "images" / name)
    (tmp_path / "split.csv").write_text("image;target;center;fold\na;0;0;train\nb;1;0;test\n", encoding="utf-8")
    found = hospitals_of("fed-isic2019", tmp_path, MELANOMA, Options(images=tmp_path / "images", split_csv=tmp_path / "split.csv"))["center-0"]
    assert [item.image.name for _, items in found.manifest.splits() for item in items] == ["a.JPG", "b.jpg"]


@pytest.mark.parametrize("layout", ["chest-xray", "pictures-and-masks", "volumes-and-masks", "csv", "fed-isic2019", "fed-ixi"])
def test_a_folder_whose_name_is_no_utf8_is_one_sentence_in_every_layout(layout: str, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/Kl\xefnik")
    os.mkdir(folder)
    task = {"chest-xray": PNEUMONIA, "csv": PNEUMONIA, "fed-isic2019": MELANOMA, "pictures-and-masks": LUNGS}.get(layout, BRAINS)
    with pytest.raises(DataError, match="its name is not UTF-8") as caught:
        hospitals_of(layout, Path(folder), task, Options())
    str(caught.value).encode()


# what is told


def test_alike_problems_of_one_silo_and_folder_are_one_line() -> None:
    problems = [f"silo {silo}: /data/{silo}/{n}.png: has no mask {n}.png in /data/masks" for silo in "ab" for n in range(50)]
    assert grouped([*problems, "silo a: /data/list.csv: has no row"]) == [
        "silo a: /data/a/0.png: has no mask 0.png in /data/masks (and 49 more alike: 1.png, 2.png, 3.png, ...)",
        "silo b: /data/b/0.png: has no mask 0.png in /data/masks (and 49 more alike: 1.png, 2.png, 3.png, ...)",
        "silo a: /data/list.csv: has no row"]
    assert grouped(problems[:3]) == problems[:3]


@pytest.mark.parametrize("most", [1, 3, 7, 10, 100])
def test_a_sample_is_spread_over_the_splits(most: int, own: Path) -> None:
    text = "image,label,split\n" + "".join(f"images/{n}.png,{n % 2},{'test' if n > 6 else 'train'}\n" for n in range(10))
    manifest = read(own, text)["hospital-0"].manifest
    found = sampled(manifest, most)
    assert min(most, 10) <= len(found.training) + len(found.test) <= min(most + 2, 10)
    assert set(found.training) <= set(manifest.training)


def test_a_sampled_ingest_writes_all_and_looks_at_some(own: Path, tmp_path: Path) -> None:
    text = "image,label,split\n" + "".join(f"images/{n}.png,{n % 2},{'test' if n > 3 else 'train'}\n" for n in range(6))
    (own / "images" / "1.png").write_bytes(b"never looked at")
    found = ingest(read(own, text), PNEUMONIA, sample=2)
    assert found.refused == ()
    assert (len(found.report.places), found.unseen) == (3, 3)  # some of each split
    assert len(found.manifests["hospital-0"].training) == 4
