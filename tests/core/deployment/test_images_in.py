"""Files as a model in use sees them: exactly as training does; what folders hold; answers brought back to an image's own pixels."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from fedhelp_core.data.items import Item
from fedhelp_core.data.reading import read_examples
from fedhelp_core.deployment.images_in import Found, PictureGrid, Prepared, Reader, Source, VolumeGrid, found_in, stretched
from tests.core.data.writers import UPRIGHT, write_multiframe, write_nifti, write_series
from tests.core.deployment.models import TASKS

pytestmark = pytest.mark.slow  # imports MONAI


def picture(path: Path, *, size: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 1) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def head(seed: int = 1) -> np.ndarray:
    """A ball of 20 mm in noise, (X, Y, Z) = (24, 26, 14)."""
    x, y, z = np.meshgrid(*(np.arange(side) for side in (24, 26, 14)), indexing="ij")
    ball = ((x - 11) * 2.0) ** 2 + ((y - 14) * 2.0) ** 2 + ((z - 6) * 3.0) ** 2 < 20**2
    noisy: np.ndarray = (ball * 500 + np.random.default_rng(seed).integers(0, 100, ball.shape)).astype(np.int16)
    return noisy


def xray(path: Path, stored: np.ndarray, *, bits: int = 12, photometric: str = "MONOCHROME2", **elements: object) -> Path:
    """A DICOM file of one image that has no place in space."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, "DX"
    one.Rows, one.Columns = stored.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, photometric, 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, bits, bits - 1
    one.PixelData = stored.astype(np.uint16).tobytes()
    for keyword, value in elements.items():
        setattr(one, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def read(task: str, *paths: Path, bits: int | None = None) -> list[Prepared]:
    return list(Reader(TASKS[task], bits).read([Source(path, path.name) for path in paths]))


@pytest.mark.parametrize(("task", "mode"), [("melanoma", "RGB"), ("pneumonia", "L"), ("lung-segmentation", "L")])
def test_pictures_are_prepared_as_in_training_to_the_last_bit(task: str, mode: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", mode=mode)
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 5:35] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    [example] = read_examples([Item(path, mask=tmp_path / "m.png")], TASKS[task])
    [found] = read(task, path)
    assert found.image_CS is not None and example.image_CHW is not None
    assert np.array_equal(found.image_CS, example.image_CHW)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_16_bit_pictures_are_shifted_by_the_hospitals_bits_and_brighter_ones_are_refused(tmp_path: Path) -> None:
    for name, most in (("dark", 1000), ("bright", 5000)):
        Image.fromarray((np.arange(1600).reshape(40, 40) % most).astype(np.uint16) + (most - 1000 if name == "bright" else 0)).save(
            tmp_path / f"{name}.png")
    dark, bright = read("lung-segmentation", tmp_path / "dark.png", tmp_path / "bright.png", bits=12)
    [example] = read_examples([Item(tmp_path / "dark.png")], TASKS["pneumonia"], 12)
    assert dark.image_CS is not None and example.image_CHW is not None and np.array_equal(dark.image_CS[0], example.image_CHW[0])
    assert "more than the 12 bits of this hospital's other pictures" in bright.problem


def test_volumes_are_prepared_as_in_training_to_the_last_bit(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", head(), UPRIGHT)
    write_nifti(tmp_path / "m.nii.gz", (head() > 300).astype(np.uint8), UPRIGHT)
    [example] = read_examples([Item(path, mask=tmp_path / "m.nii.gz")], TASKS["brain-segmentation"])
    [found] = read("brain-segmentation", path)
    assert found.image_CS is not None and example.image_CHW is not None
    assert np.array_equal(found.image_CS, example.image_CHW)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_an_x_ray_in_dicom_is_seen_as_its_window_shows_it(photometric: str, tmp_path: Path) -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = xray(tmp_path / "chest.dcm", stored, photometric=photometric, WindowCenter="1024.5", WindowWidth="1001")
    shown = ((stored.astype(float) - 524) / 1000 * 255).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(shown if photometric == "MONOCHROME2" else 255 - shown).save(tmp_path / "same.png")
    ours, theirs = read("lung-segmentation", path, tmp_path / "same.png")
    assert ours.image_CS is not None and theirs.image_CS is not None
    assert np.array_equal(ours.image_CS, theirs.image_CS)


def test_an_x_ray_without_a_window_is_shown_from_the_least_to_the_largest_value_of_its_bits(tmp_path: Path) -> None:
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    Image.fromarray((stored / 4095 * 255).round().astype(np.uint8)).save(tmp_path / "same.png")
    ours, theirs = read("pneumonia", xray(tmp_path / "chest.dcm", stored), tmp_path / "same.png")
    assert ours.image_CS is not None and theirs.image_CS is not None and np.array_equal(ours.image_CS, theirs.image_CS)


@pytest.mark.parametrize(("elements", "said"), [
    ({"WindowCenter": "100", "WindowWidth": "0"}, r"WindowWidth \(0028,1051\) is 0, at least 1 expected"),
    ({"photometric": "RGB"}, "PhotometricInterpretation .* is RGB, MONOCHROME2 or MONOCHROME1 expected"),
    ({"NumberOfFrames": "4"}, "NumberOfFrames .* is 4, one image expected"),
    ({"Rows": 90}, "PixelData .* holds 8,192 bytes, 11,520 expected"),
])
def test_a_dicom_image_that_is_not_certain_is_refused(elements: dict[str, Any], said: str, tmp_path: Path) -> None:
    [found] = read("pneumonia", xray(tmp_path / "a.dcm", np.zeros((64, 64)), **elements))
    assert re.search(said, found.problem)


def test_every_file_that_cannot_be_used_is_one_sentence_that_names_it_and_the_others_are_read(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    bad = {
        "truncated.png": good.read_bytes()[:200], "empty.jpg": b"", "text.png": b"hello", "gif.png": b"GIF89a" + b"\0" * 100,
        "encrypted.dcm": b"\0" * 128 + b"DICM" + b"\x07" * 500, "truncated.dcm": xray(tmp_path / "whole.dcm", np.zeros((64, 64))).read_bytes()[:700]}
    for name, body in bad.items():
        (tmp_path / name).write_bytes(body)
    picture(tmp_path / "alpha.png", mode="RGBA")
    picture(tmp_path / "print.jpg", mode="CMYK")
    paths = [good, *(tmp_path / name for name in bad), tmp_path / "gone.png", tmp_path / "print.jpg"]
    first, *others = read("melanoma", *paths)
    assert first.image_CS is not None and not first.problem
    for one in others:
        assert one.image_CS is None and str(one.source.path) in one.problem and "\n" not in one.problem, one


def test_a_colour_picture_is_none_of_a_grey_task(tmp_path: Path) -> None:
    [found] = read("lung-segmentation", picture(tmp_path / "a.png"))
    assert "is a colour picture (RGB), but this task's images are grey" in found.problem


@pytest.mark.parametrize(("change", "said"), [
    (lambda header: header.__setitem__("pixdim", [1, 0, 2, 3, 0, 0, 0, 0]), "pixdim is 0 x 2 x 3, positive numbers expected"),
    (lambda header: (header.__setitem__("qform_code", 0), header.__setitem__("sform_code", 0)), "has no affine"),
])
def test_a_volume_without_spacing_or_place_is_refused(change: object, said: str, tmp_path: Path) -> None:
    [found] = read("brain-segmentation", write_nifti(tmp_path / "a.nii", head(), UPRIGHT, change=change))  # type: ignore[arg-type]
    assert said in found.problem


def test_a_volume_with_nan_is_refused(tmp_path: Path) -> None:
    voxels = head().astype(np.float32)
    voxels[3, 3, 3] = np.nan
    [found] = read("brain-segmentation", write_nifti(tmp_path / "a.nii", voxels, UPRIGHT))
    assert "holds NaN or infinite voxels" in found.problem


def test_two_series_in_one_folder_are_refused_with_both_named(tmp_path: Path) -> None:
    write_series(tmp_path / "both", head())
    for path in write_series(tmp_path / "other", head(2)):
        path.rename(tmp_path / "both" / f"other-{path.name}")
    [found] = read("brain-segmentation", tmp_path / "both")
    assert "SeriesInstanceUID (0020,000E) is" in found.problem and "keep one series' slices in it" in found.problem


def test_a_folder_stands_for_its_pictures_and_those_below_by_name_and_what_is_none_is_told(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deep/c.PNG", ".hidden.png"):
        picture(tmp_path / name)
    xray(tmp_path / "deep" / "IM0001", np.zeros((64, 64)))
    (tmp_path / "list.csv").write_text("x")
    found = found_in([tmp_path], TASKS["melanoma"])
    assert [source.called for source in found.sources] == ["a.jpg", "b.png", "deep/IM0001", "deep/c.PNG"]
    assert found.notes == ("no images, left alone: list.csv",) and not found.problems


def test_of_volumes_a_folder_of_slices_is_one_image_and_the_other_files_are_one_each(tmp_path: Path) -> None:
    write_nifti(tmp_path / "one.nii.gz", head())
    write_series(tmp_path / "study" / "series", head())
    write_multiframe(tmp_path / "study" / "multi.dcm", head())
    found = found_in([tmp_path], TASKS["brain-segmentation"])
    assert [source.called for source in found.sources] == ["one.nii.gz", "study/multi.dcm", "study/series"]
    assert found_in([tmp_path / "study" / "series"], TASKS["brain-segmentation"]).sources[0].called == "series"


def test_what_is_not_there_and_folders_without_an_image_are_problems_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = found_in([tmp_path / "gone", tmp_path / "empty"], TASKS["melanoma"])
    assert found == Found((), (), (
        f"{tmp_path / 'gone'}: no such file or folder; correct the path",
        f"{tmp_path / 'empty'}: holds no picture (.jpeg, .jpg, .png or DICOM); give another folder, or the files themselves"))


def test_a_link_to_a_folder_above_does_not_go_round_for_ever(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "up").symlink_to(tmp_path)
    assert len(found_in([tmp_path], TASKS["melanoma"]).sources) == 1


def test_a_pipe_is_a_problem_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    [found] = read("melanoma", tmp_path / "pipe.png")
    assert "is no regular file, but a pipe or a device" in found.problem


@pytest.mark.parametrize("sides", [(30, 40), (41, 30), (16, 16), (33, 90)])
def test_what_the_network_says_comes_back_to_the_pictures_own_pixels(sides: tuple[int, int]) -> None:
    """A ramp over the central square is the same ramp on the picture, and nothing is said beside the square."""
    ramp = np.tile((np.arange(16, dtype=np.float32) + 0.5) / 16, (16, 1))
    back = PictureGrid(sides, Image.new("RGB", (2, 2))).back(ramp)
    side, start = min(sides), (sides[1] - min(sides)) / 2
    inside = np.arange(sides[1]) + 0.5 - start
    seen = (inside >= 0) & (inside <= side)
    assert back.shape == sides
    middle = back[sides[0] // 2]
    assert middle[seen] == pytest.approx(np.clip(inside[seen] / side, 1 / 32, 1 - 1 / 32), abs=1e-6)
    assert not middle[~seen].any()
    assert not stretched(np.ones((16, 16), np.float32), sides)[0].any() or sides[0] <= sides[1]


def test_a_series_and_its_conversion_whose_grid_would_have_half_a_voxel_are_the_same_cube(tmp_path: Path) -> None:
    """24 voxels of 2 mm make 11.5 steps of 4 mm: the seventh digit of a spacing would decide about one voxel more."""
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([-2.0, -2.0, 3.0]), (40, 50, -30)
    write_series(tmp_path / "series", head(), affine)
    flipped = affine.copy()
    flipped[:3, 1], flipped[:3, 3] = -affine[:3, 1], affine[:3, 3] + affine[:3, 1] * 25
    write_nifti(tmp_path / "converted.nii.gz", np.ascontiguousarray(head()[:, ::-1]), flipped)
    series, converted = read("brain-segmentation", tmp_path / "series", tmp_path / "converted.nii.gz")
    assert series.image_CS is not None and converted.image_CS is not None
    assert np.array_equal(series.image_CS, converted.image_CS)
    assert isinstance(series.grid, VolumeGrid) and isinstance(converted.grid, VolumeGrid)
    cube = series.image_CS[0].astype(np.float32)
    there, here = series.grid.back(cube), converted.grid.back(cube)
    assert there == pytest.approx(here[:, ::-1], abs=1e-3)


def test_a_ball_comes_back_to_where_it_was(tmp_path: Path) -> None:
    [found] = read("brain-segmentation", write_nifti(tmp_path / "a.nii.gz", head(), UPRIGHT))
    assert found.image_CS is not None and isinstance(found.grid, VolumeGrid)
    back = found.grid.back(found.image_CS[0].astype(np.float32)) > 150
    truth = head() > 300
    assert np.argwhere(back).mean(axis=0) == pytest.approx(np.argwhere(truth).mean(axis=0), abs=0.3)
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.9
