"""`fedhelp predict` as people type it: answers as files, exit codes, one sentence for each file that cannot be used, nothing half-written."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fedhelp_cli.main import main
from tests.core.data.writers import write_multiframe, write_nifti, write_series
from tests.core.deployment.models import Hospital, files_of_at_most, hospital, tree_of
from tests.core.deployment.test_images_in import head, picture

pytestmark = pytest.mark.slow  # imports MONAI

CONFIG, DATA, WEIGHTS, ACCESS, NOT_FOUND, FULL, PARTLY = 10, 11, 12, 14, 18, 32, 41


def typed(here: Hospital, *images: str | Path, out: Path, options: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, images), "--silo", str(here.silo), "--out", str(out), *options])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refused(done: Result, code: int, *said: str) -> None:
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    for part in said:
        assert part in done.output, done.output


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path / "in"


def test_pictures_become_a_table_a_json_and_a_page_with_heat_maps(pictures: Path, tmp_path: Path) -> None:
    here, out = hospital(tmp_path / "here", undecided_margin=0.0), tmp_path / "out"
    done = typed(here, pictures, out=out)
    assert done.exit_code == 0, done.output
    assert "chest version 3 (the shared model): 3 images answered" in done.output and "3 of 3 images answered" in done.output
    rows, document = rows_of(out), json.loads((out / "results.json").read_text())
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png"] == [answer["file"] for answer in document["answers"]]
    for row, answer in zip(rows, document["answers"], strict=True):
        assert row["decision"] == row["class"] == answer["class"] and row["version"] == "3"
        assert float(row[f"probability:{row['class']}"]) == pytest.approx(answer["probabilities"][row["class"]], abs=1e-6)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert len(answer["sha256"]) == 64
    assert document["model"]["weights_sha256"] == here.models.in_use().contract.weights_sha256
    page = (out / "results.html").read_text()
    assert page.count('src="data:image/jpeg;base64') == 6 and "Grad-CAM" in page and "Not a medical device" in page and "<script" not in page


def test_an_uncertain_answer_is_said_to_be_so_and_comes_first_on_the_page(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = typed(hospital(tmp_path / "here", undecided_margin=1.0), pictures, out=out, options=("--no-pictures",))
    assert "none decided; do not decide 3" in done.output and not (out / "results.html").exists()
    assert {row["decision"] for row in rows_of(out)} == {"do not decide"}
    assert all(row["class"] for row in rows_of(out))


def test_masks_of_pictures_are_as_large_as_the_pictures(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here", "lung-segmentation")
    picture(tmp_path / "a" / "x.png", size=(50, 31), mode="L")
    picture(tmp_path / "b" / "x.png", size=(20, 64), mode="L", seed=2)
    assert typed(here, tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", out=tmp_path / "out").exit_code == 0
    masks = [np.asarray(Image.open(tmp_path / "out" / row["mask"])) for row in rows_of(tmp_path / "out")]
    assert [mask.shape for mask in masks] == [(31, 50), (64, 20)]
    assert all(set(np.unique(mask)) <= {0, 255} for mask in masks)
    for mask, row in zip(masks, rows_of(tmp_path / "out"), strict=True):
        assert float(row["foreground"]) == pytest.approx((mask > 0).mean(), abs=1e-6)


def test_a_series_a_multi_frame_file_and_their_conversion_have_the_same_mask_in_space(tmp_path: Path) -> None:
    """The series' files lie in another order, the conversion's second axis is turned round, and the axes are oblique."""
    here, out = hospital(tmp_path / "here", "brain-segmentation", undecided_dice=0.0), tmp_path / "out"
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([-2.0, -2.0, 3.0]), (40, 50, -30)
    write_series(tmp_path / "in" / "series", head(), affine, order=list(np.random.default_rng(5).permutation(14)))
    write_multiframe(tmp_path / "in" / "frames.dcm", head(), affine, order=range(13, -1, -1), change=_with_a_study)
    flipped = affine.copy()
    flipped[:3, 1], flipped[:3, 3] = -affine[:3, 1], affine[:3, 3] + affine[:3, 1] * 25
    write_nifti(tmp_path / "in" / "converted.nii.gz", np.ascontiguousarray(head()[:, ::-1]), flipped)
    done = typed(here, tmp_path / "in", out=out)
    assert done.exit_code == 0, done.output
    converted, frames, series = rows_of(out)
    masks = {row["file"]: nibabel.load(out / row["mask"]) for row in (converted, frames, series)}
    arrays = {name: np.asarray(mask.dataobj) for name, mask in masks.items()}
    assert arrays["series"].any() and not arrays["series"].all()
    assert np.array_equal(arrays["series"], arrays["converted.nii.gz"][:, ::-1]), "Dice 1.0"
    assert np.array_equal(arrays["series"], arrays["frames.dcm"])
    assert np.allclose(masks["series"].affine, affine, atol=1e-4) and np.allclose(masks["converted.nii.gz"].affine, flipped, atol=1e-4)
    assert float(series["millilitres"]) == pytest.approx(arrays["series"].sum() * 12 / 1000)
    for row in (series, frames):
        found = highdicom.seg.segread(out / row["segmentation"]).get_volume()
        assert found.array.astype(bool).sum() == arrays["series"].sum()
        for place in np.argwhere(found.array[..., 0])[:50]:  # the same places of the patient, in LPS
            at = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine) @ found.affine @ [*place, 1]
            assert arrays["series"][tuple(at[:3].round().astype(int))] == 1
    assert converted["segmentation"] == ""


def _with_a_study(file: object, _z: int) -> None:
    file.StudyInstanceUID, file.FrameOfReferenceUID = "1.2.3", "1.2.4"  # type: ignore[attr-defined]


def test_a_bad_file_is_named_the_others_are_answered_and_the_end_is_not_success(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    refused(typed(hospital(tmp_path / "here"), pictures, tmp_path / "gone.png", out=out), PARTLY, "bad.png: cannot be read", "gone.png: no such file")
    rows = rows_of(out)
    assert [row["file"] for row in rows if row["problem"]] == ["bad.png"] and sum(bool(row["class"]) for row in rows) == 3
    assert "bad.png: cannot be read" in (out / "results.html").read_text()


def test_where_no_file_can_be_used_nothing_is_written(tmp_path: Path) -> None:
    here = hospital(tmp_path / "here")
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    refused(typed(here, tmp_path / "bad.png", out=tmp_path / "out"), DATA, "bad.png: cannot be read as an image (no bytes in it")
    refused(typed(here, tmp_path / "empty", out=tmp_path / "out"), DATA, "holds no picture (.jpeg, .jpg, .png or DICOM)")
    refused(typed(here, tmp_path / "gone", out=tmp_path / "out"), DATA, "no such file or folder")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.tmp"))


def test_the_same_command_again_replaces_its_results_with_the_same_and_touches_no_others(pictures: Path, tmp_path: Path) -> None:
    here, out = hospital(tmp_path / "here"), tmp_path / "out"
    assert typed(here, pictures, out=out).exit_code == 0
    before = tree_of(out)
    assert typed(here, pictures, out=out).exit_code == 0
    assert tree_of(out) == before
    refused(typed(here, pictures / "0.png", out=out), CONFIG, "holds the results of another question, which are not overwritten")
    here.put_in_use(2, version="4")
    refused(typed(here, pictures, out=out), CONFIG, "another question")
    assert tree_of(out) == before


def test_places_where_results_would_lie_among_other_files_are_refused(pictures: Path, tmp_path: Path) -> None:
    here = hospital(tmp_path / "here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    before = tree_of(tmp_path)
    refused(typed(here, pictures, out=pictures / "out"), CONFIG, "lies where the images are")
    refused(typed(here, pictures, out=pictures), CONFIG, "lies where the images are")
    refused(typed(here, pictures, out=tmp_path), CONFIG, "lies where the images are")
    refused(typed(here, pictures, out=tmp_path / "full"), CONFIG, "holds other files (thesis.txt), which are not overwritten")
    refused(typed(here, pictures, out=tmp_path / "file"), CONFIG, "is a file; give the name of a new folder")
    refused(typed(here, pictures, out=tmp_path / "file" / "out"), CONFIG, "results cannot be written here")
    assert tree_of(tmp_path) == before


def test_a_full_disk_leaves_nothing_half_written(pictures: Path, tmp_path: Path) -> None:
    here, out = hospital(tmp_path / "here"), tmp_path / "out"
    with files_of_at_most(200):
        refused(typed(here, pictures, out=out), FULL, "no space left for the results")
    assert not out.exists() and not list(tmp_path.glob(".*.tmp"))


def test_names_of_all_kinds_stay_what_they_are_and_harm_nothing(tmp_path: Path) -> None:
    here, out = hospital(tmp_path / "here", "lung-segmentation"), tmp_path / "out"
    names = ["two\nlines.png", "=SUM(A1).png", "Ärztin 7 äöü.png", "quote\"and,comma.png", "\x1b[31mred.png", "x" * 200 + ".png"]
    for number, name in enumerate(names):
        picture(tmp_path / "in" / name, mode="L", seed=number)
    (tmp_path / "in" / os.fsdecode(b"latin-\xe4.png")).write_bytes(b"x")
    done = typed(here, tmp_path / "in", out=out)
    refused(done, PARTLY, "its name is not UTF-8")
    assert "\x1b" not in done.output and "\x1b" not in (out / "results.html").read_text()
    rows = rows_of(out)
    assert sorted(row["file"].removeprefix("./") for row in rows) == sorted(names)
    assert not any(row["file"].startswith("=") for row in rows)
    assert sorted(answer["file"] for answer in json.loads((out / "results.json").read_text())["answers"]) == sorted(names)
    assert len({row["mask"] for row in rows}) == len(names)
    assert all((out / row["mask"]).is_file() and (out / row["mask"]).name.isascii() for row in rows)


def test_without_a_model_in_use_the_next_step_is_said(pictures: Path, tmp_path: Path) -> None:
    empty = hospital(tmp_path / "here", in_use=False)
    refused(typed(empty, pictures, out=tmp_path / "out"), NOT_FOUND, "this hospital has no model yet; fetch and adopt one")
    here = hospital(tmp_path / "there")
    refused(typed(here, pictures, out=tmp_path / "out", options=("--name", "skin")), NOT_FOUND, "no model is in use; adopt one")
    here.models.in_use().weights.unlink()
    refused(typed(here, pictures, out=tmp_path / "out"), NOT_FOUND, "no such weights file")


def test_weights_in_use_that_were_altered_answer_nothing(pictures: Path, tmp_path: Path) -> None:
    here = hospital(tmp_path / "here")
    path = here.models.in_use().weights
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    refused(typed(here, pictures, out=tmp_path / "out"), WEIGHTS, "tampered with or damaged")


def test_a_dry_run_names_model_and_images_and_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    done = typed(hospital(tmp_path / "here"), pictures, out=tmp_path / "out", options=("--dry-run",))
    assert done.exit_code == 0 and "would answer about 3 images" in done.output and str(pictures / "2.png") in done.output
    assert not (tmp_path / "out").exists()


def test_a_picture_task_refuses_volumes_and_a_volume_task_pictures(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", head())
    picture(tmp_path / "b.png")
    refused(typed(hospital(tmp_path / "x"), tmp_path / "a.nii.gz", out=tmp_path / "out"), DATA, "cannot be read as an image (is a gzip file")
    refused(typed(hospital(tmp_path / "y", "brain-segmentation"), tmp_path / "b.png", out=tmp_path / "out"), DATA, "a NIfTI file (.nii.gz, .nii)")


def test_a_gpu_that_is_not_there_is_said_to_be_missing(pictures: Path, tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        refused(typed(hospital(tmp_path / "x"), pictures, out=tmp_path / "out", options=("--device", "cuda")), CONFIG, "no usable GPU")


def test_help_teaches_what_goes_in_and_what_comes_out() -> None:
    said = CliRunner().invoke(main, ["predict", "--help"]).output
    for part in ("results.csv", "masks/", "do not decide", "DICOM", "Examples", "--dry-run", "41"):
        assert part in said


def grey_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_findings_are_probabilities_each_by_itself(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = typed(hospital(tmp_path / "here", "chest-findings", undecided_margin=0.0), pictures, out=out)
    assert done.exit_code == 0, done.output
    for row, answer in zip(rows_of(out), json.loads((out / "results.json").read_text())["answers"], strict=True):
        found = [name for name in ("effusion", "mass", "air") if float(row[f"probability:{name}"]) > 0.5]
        assert answer["found"] == found
        assert row["decision"] == answer["decision"] == (", ".join(found) or "no finding")
        assert float(row["margin"]) == pytest.approx(min(abs(2 * value - 1) for value in answer["probabilities"].values()), abs=1e-6)
    assert "Each finding has a probability by itself" in (out / "results.html").read_text()


def test_several_foregrounds_are_numbers_of_one_file_and_regions_a_file_each(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "organs"
    done = typed(hospital(tmp_path / "here", "chest-organs", undecided_dice=0.0), grey_pictures(tmp_path / "grey"), out=out)
    assert done.exit_code == 0, done.output
    for row in rows_of(out):
        mask = np.asarray(Image.open(out / row["mask"]))
        assert mask.shape == (20, 24) and set(np.unique(mask)) <= {0, 1, 2}
        assert float(row["foreground"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
    out = tmp_path / "regions"
    done = typed(hospital(tmp_path / "there", "skin-regions", undecided_dice=0.0), pictures, out=out)
    assert done.exit_code == 0, done.output
    for row in rows_of(out):
        files = row["mask"].split()
        assert [file.rsplit("-", 1)[1] for file in files] == ["lesion.png", "network.png"]
        assert all(set(np.unique(np.asarray(Image.open(out / file)))) <= {0, 255} for file in files)
