"""Segmentation's files in the public sets' own layouts: what is read, and twenty things people get wrong, a case a line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.arrays import load_silo_arrays
from fedhelp_core.data.phantom.fed_ixi import MAGNETS, save_volume, write_fed_ixi
from fedhelp_core.data.phantom.head import draw
from fedhelp_core.data.phantom.lungs import write_lungs
from fedhelp_core.errors import ConfigError, DataError

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
LUNGS = TaskConfig(name="lung-segmentation", image_size=32)
BRAINS = TaskConfig.model_validate({
    "name": "brain-segmentation", "image_size": 24, "volume": {"spacing": 9.0, "patch_size": 16, "window_size": 16}})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_lungs(folder / "lungs", seed=3, counts={"CHNCXR": 8, "MCUCXR": 6})
    write_fed_ixi(folder / "heads", seed=3, counts={"Guys": (2, 1), "HH": (2, 1)}, spacing=9.0)
    return folder


@pytest.fixture
def copy(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(drawn, tmp_path / "copy")
    return tmp_path / "copy"


def lungs(folder: Path, **more: object) -> SiloConfig:
    data = {"layout": "pictures-and-masks", "images": folder / "lungs/images", "masks": folder / "lungs/masks", "prefix": "CHNCXR",
            "test_fraction": 0.4, **more}
    return SiloConfig.model_validate({"name": "a", "state": folder / "state", "data": data})


def heads(folder: Path, **more: object) -> SiloConfig:
    data = {"layout": "fed-ixi", "root": folder / "heads/subjects", "split_csv": folder / "heads/metadata_tiny.csv", "hospital": "Guys", **more}
    return SiloConfig.model_validate({"name": "a", "state": folder / "state", "data": data})


def test_pictures_and_their_masks_are_cut_and_scaled_alike(copy: Path) -> None:
    found = load_silo_arrays(lungs(copy), LUNGS)
    assert len(found.training.images_NCHW) + len(found.test.images_NCHW) == 8
    assert found.training.images_NCHW.shape[1:] == found.training.labels_N.shape[1:] == (1, 32, 32)
    assert set(found.training.labels_N.unique().tolist()) == {0, 1}
    inside, outside = found.training.images_NCHW[found.training.labels_N == 1], found.training.images_NCHW[found.training.labels_N == 0]
    assert inside.float().mean() < outside.float().mean() - 10  # lungs are dark
    again = load_silo_arrays(lungs(copy), LUNGS)  # from the cache
    assert (again.test.labels_N == found.test.labels_N).all()


def test_hospitals_are_told_by_prefix_or_dealt_out(copy: Path) -> None:
    assert len(load_silo_arrays(lungs(copy, prefix="MCUCXR"), LUNGS).training.labels_N) < 6
    hands = [load_silo_arrays(lungs(copy, prefix="", share={"number": n, "sizes": (2, 1)}), LUNGS) for n in range(2)]
    assert sum(len(hand.training.labels_N) + len(hand.test.labels_N) for hand in hands) == 14


def test_a_head_is_the_same_whatever_spacing_and_orientation_its_file_has(tmp_path: Path) -> None:
    from fedhelp_core.data.items import Item
    from fedhelp_core.data.volumes import VolumeReader

    seen = []
    for number, magnet in enumerate((replace(MAGNETS["Guys"], spacing=(9, 9, 9)), replace(MAGNETS["Guys"], axes="PSR", spacing=(6, 9, 7)))):
        volume, mask, affine = draw(replace(magnet, noise=0.0), np.random.default_rng(5))
        save_volume(volume, affine, tmp_path / f"{number}.nii.gz")
        save_volume(mask, affine, tmp_path / f"{number}-mask.nii.gz")
        seen.append(VolumeReader(BRAINS).read(Item(tmp_path / f"{number}.nii.gz", mask=tmp_path / f"{number}-mask.nii.gz")))
    one, other = (np.asarray(example.target, dtype=float) for example in seen)
    assert 2 * (one * other).sum() / (one.sum() + other.sum()) > 0.9  # Dice of the two masks
    assert seen[0].image_CHW is not None and seen[0].image_CHW.shape == (1, 24, 24, 24)


def test_fed_ixi_is_read_by_hospital_and_split(copy: Path) -> None:
    found = load_silo_arrays(heads(copy), BRAINS)
    assert (len(found.training.labels_N), len(found.test.labels_N)) == (2, 1)
    assert found.training.images_NCHW.shape[1:] == (1, 24, 24, 24)
    assert 0.05 < found.training.labels_N.float().mean() < 0.4


def test_a_volume_smaller_than_the_cube_is_padded(copy: Path) -> None:
    task = BRAINS.model_copy(update={"image_size": 40})
    assert load_silo_arrays(heads(copy), task).test.images_NCHW.shape == (1, 1, 40, 40, 40)


def test_a_dicom_series_is_read_like_a_nifti_file(tmp_path: Path) -> None:
    from fedhelp_core.data.volumes import VolumeReader

    volume = np.arange(12 * 10 * 9, dtype=np.uint16).reshape(12, 10, 9)
    write_series(tmp_path / "series", volume)
    save_volume(volume.astype(np.int16), np.diag([-2.0, -2.0, 3.0, 1.0]), tmp_path / "same.nii.gz")
    reader = VolumeReader(BRAINS)
    series, nifti = reader.read_image(tmp_path / "series"), reader.read_image(tmp_path / "same.nii.gz")
    assert series.problem == nifti.problem == ""
    assert np.array_equal(series.image_CHW, nifti.image_CHW)


def write_series(folder: Path, volume: np.ndarray) -> None:
    """(X, Y, Z) as axial slices, 2 mm x 2 mm x 3 mm."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series, study = generate_uid(), generate_uid()
    for z in range(volume.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset(str(folder / f"{z}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID = series, study
        one.Modality, one.InstanceNumber = "CT", z + 1
        one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing, one.SliceThickness = [0, 0, 3.0 * z], [1, 0, 0, 0, 1, 0], [2, 2], 3
        one.Rows, one.Columns = volume.shape[1], volume.shape[0]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.BitsAllocated, one.BitsStored, one.HighBit = 1, "MONOCHROME2", 16, 16, 15
        one.PixelRepresentation, one.RescaleSlope, one.RescaleIntercept = 0, 1, 0
        one.PixelData = np.ascontiguousarray(volume[:, :, z].T).tobytes()
        one.save_as(folder / f"{z}.dcm", enforce_file_format=True)


Damage = Callable[[Path], SiloConfig | None]
LUNG_CASES: dict[str, tuple[str, Damage]] = {}
HEAD_CASES: dict[str, tuple[str, Damage]] = {}


def case(cases: dict[str, tuple[str, Damage]], words: str) -> Callable[[Damage], Damage]:
    """Add a case: what the one sentence must say, and what leads to it."""

    def add(damage: Damage) -> Damage:
        cases[damage.__name__] = (words, damage)
        return damage

    return add


def picture(folder: Path) -> tuple[Path, Path]:
    """A picture and its mask."""
    path = sorted((folder / "lungs/images").glob("CHNCXR*"))[0]
    return path, folder / "lungs/masks" / f"{path.stem}_mask.png"


@case(LUNG_CASES, r"mask\.png: the mask is 50 x 50, its image 96 x 112; both must have the same grid")
def mask_of_another_shape(folder: Path) -> None:
    Image.fromarray(np.full((50, 50), 255, np.uint8)).save(picture(folder)[1])


@case(LUNG_CASES, "the mask is empty, no lung in it")
def empty_mask(folder: Path) -> None:
    Image.fromarray(np.zeros((96, 112), np.uint8)).save(picture(folder)[1])


@case(LUNG_CASES, r"the mask holds 3 labels \(0, 1, 2\); two declared in task.classes")
def mask_with_more_labels_than_declared(folder: Path) -> None:
    Image.fromarray((np.arange(96 * 112).reshape(96, 112) % 3).astype(np.uint8)).save(picture(folder)[1])


@case(LUNG_CASES, r"is a colour picture \(RGB\), but this task's images are grey")
def colour_where_grey_is_expected(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 112, 3), np.uint8)).save(picture(folder)[0])


@case(LUNG_CASES, "the mask is a colour picture")
def colour_mask(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (96, 112, 3), np.uint8)).save(picture(folder)[1])


@case(LUNG_CASES, r"CHNCXR_0001_0\.png: cannot be read as an image")
def zero_byte_picture(folder: Path) -> None:
    picture(folder)[0].write_bytes(b"")


@case(LUNG_CASES, r"_mask\.png: cannot be read as an image")
def truncated_mask(folder: Path) -> None:
    mask = picture(folder)[1]
    mask.write_bytes(mask.read_bytes()[:60])


@case(LUNG_CASES, r"has no mask CHNCXR_0001_0\.png or CHNCXR_0001_0_mask\.png in .*masks")
def missing_mask(folder: Path) -> None:
    picture(folder)[1].unlink()


@case(LUNG_CASES, r"CHNCXR_0001_0\.png: no such image file \(Too many levels of symbolic links\)")
def loop_of_links(folder: Path) -> None:
    path = picture(folder)[0]
    path.unlink()
    path.symlink_to(path.name)


@case(LUNG_CASES, "nothing of the mask is left at 32 x 32 pixels; raise task.image_size")
def mask_of_one_pixel(folder: Path) -> None:
    mask = np.zeros((96, 112), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(picture(folder)[1])


@case(LUNG_CASES, "no such folder; correct data.masks")
def no_folder_of_masks(folder: Path) -> SiloConfig:
    return lungs(folder, masks=folder / "none")


@case(LUNG_CASES, "no picture .* whose name begins with 'XYZ'; correct data.images or data.prefix")
def unknown_prefix(folder: Path) -> SiloConfig:
    return lungs(folder, prefix="XYZ")


@case(LUNG_CASES, "label: the mask's path expected, got 1")
def datalist_of_class_numbers(folder: Path) -> SiloConfig:
    (folder / "list.json").write_text(json.dumps({"training": [{"image": "lungs/images/CHNCXR_0001_0.png", "label": 1}]}))
    return SiloConfig.model_validate({"name": "a", "state": folder / "state", "data": {"layout": "datalist", "datalist": folder / "list.json"}})


@case(LUNG_CASES, r"image '\.\./mask\.png' lies outside")
def mask_outside_the_root(folder: Path) -> SiloConfig:
    (folder / "list.json").write_text(json.dumps({"training": [{"image": "lungs/images/CHNCXR_0001_0.png", "label": "../mask.png"}]}))
    return SiloConfig.model_validate({"name": "a", "state": folder / "state", "data": {"layout": "datalist", "datalist": folder / "list.json"}})


def volume(folder: Path) -> tuple[Path, Path]:
    """A subject's T1 and its mask."""
    subject = sorted((folder / "heads/subjects").glob("*-Guys-*"))[0]
    return next((subject / "T1").iterdir()), next((subject / "label").iterdir())


def saved(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    file = nibabel.load(path)
    save_volume(change(np.asarray(file.dataobj)), file.affine if affine is None else affine, path)


@case(HEAD_CASES, r"_label\.nii\.gz: the mask is 22 x 22 x 10, its image 22 x 22 x 19")
def mask_volume_of_another_shape(folder: Path) -> None:
    saved(volume(folder)[1], lambda voxels: voxels[:, :, :10])


@case(HEAD_CASES, "the mask is empty, no brain in it")
def empty_mask_volume(folder: Path) -> None:
    saved(volume(folder)[1], np.zeros_like)


@case(HEAD_CASES, r"the mask holds 4 labels \(0, 1, 2, 3\)")
def parcellation_for_a_mask(folder: Path) -> None:
    saved(volume(folder)[1], lambda voxels: (np.arange(voxels.size).reshape(voxels.shape) % 4).astype(np.uint8))


@case(HEAD_CASES, "the mask lies elsewhere than its image")
def mask_of_another_spacing(folder: Path) -> None:
    saved(volume(folder)[1], lambda voxels: voxels, np.diag([3.0, 3.0, 3.0, 1.0]))


@case(HEAD_CASES, r"_image\.nii\.gz: has no affine \(qform and sform codes are 0\)")
def volume_without_affine(folder: Path) -> None:
    path = volume(folder)[0]
    bare = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), None)
    bare.to_filename(path)


@case(HEAD_CASES, r"_image\.nii\.gz: cannot be read as NIfTI")
def zero_byte_volume(folder: Path) -> None:
    volume(folder)[0].write_bytes(b"")


@case(HEAD_CASES, r"_image\.nii\.gz: cannot be read as NIfTI")
def truncated_volume(folder: Path) -> None:
    path = volume(folder)[0]
    path.write_bytes(path.read_bytes()[:2000])


@case(HEAD_CASES, "holds NaN or infinite voxels")
def volume_with_nan(folder: Path) -> None:
    saved(volume(folder)[0], lambda voxels: np.where(voxels > 100, np.nan, voxels).astype(np.float32))


@case(HEAD_CASES, "every voxel is 7; replace or remove the volume")
def constant_volume(folder: Path) -> None:
    saved(volume(folder)[0], lambda voxels: np.full_like(voxels, 7))


@case(HEAD_CASES, "three dimensions expected, got 22 x 22 x 19 x 2")
def two_volumes_in_a_file(folder: Path) -> None:
    saved(volume(folder)[0], lambda voxels: np.stack([voxels, voxels], axis=-1))


@case(HEAD_CASES, "is 22 x 22 x 2 voxels, every side of at least 8 expected; a slice is no volume")
def slices_for_a_volume(folder: Path) -> None:
    for path in volume(folder):
        saved(path, lambda voxels: voxels[:, :, :2])


@case(HEAD_CASES, "T1: one NIfTI file expected, found 2")
def two_files_of_a_subject(folder: Path) -> None:
    path = volume(folder)[0]
    shutil.copy(path, path.with_name("second.nii.gz"))


@case(HEAD_CASES, "no subject folder like IXI002-IOP-0828")
def hospital_without_subjects(folder: Path) -> SiloConfig:
    return heads(folder, hospital="IOP")


@case(HEAD_CASES, "columns Patient ID, Split expected, but Split missing")
def csv_without_splits(folder: Path) -> None:
    path = folder / "heads/metadata_tiny.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    path.write_text("\n".join(",".join(row[:2]) for row in rows))


@case(HEAD_CASES, "line 2: a patient's number and train or test expected")
def split_of_another_name(folder: Path) -> None:
    path = folder / "heads/metadata_tiny.csv"
    path.write_text(path.read_text().replace("train", "valid"))


@pytest.mark.parametrize(("words", "damage", "task", "silo"), [
    *(pytest.param(*one, LUNGS, lungs, id=name) for name, one in LUNG_CASES.items()),
    *(pytest.param(*one, BRAINS, heads, id=name) for name, one in HEAD_CASES.items()),
])
def test_what_is_wrong_with_a_file_is_one_sentence_that_names_it(
    words: str, damage: Damage, task: TaskConfig, silo: Callable[[Path], SiloConfig], copy: Path,
) -> None:
    config = damage(copy) or silo(copy)
    with pytest.raises(DataError, match=words) as found:
        load_silo_arrays(config, task)
    assert len(str(found.value).splitlines()) == 1


def test_sixteen_bit_and_equal_channels_are_grey(copy: Path) -> None:
    before = load_silo_arrays(lungs(copy), LUNGS)
    for path in (copy / "lungs/images").glob("CHNCXR*"):
        pixels = np.asarray(Image.open(path))
        odd = int(path.stem.split("_")[1]) % 2
        Image.fromarray(pixels.astype(np.uint16) * 256 if odd else np.stack([pixels] * 3, axis=-1)).save(path)
    after = load_silo_arrays(lungs(copy), LUNGS)
    assert (before.training.images_NCHW == after.training.images_NCHW).all()


@pytest.mark.parametrize(("config", "task", "words"), [
    (lungs, TaskConfig(), "'pictures-and-masks' has no class numbers, which task melanoma needs"),
    (lambda folder: SiloConfig.model_validate({"name": "a", "state": folder, "data": {
        "layout": "chest-xray", "root": folder, "share": {"number": 0}}}), LUNGS, "'chest-xray' has no masks, which task lung-segmentation needs"),
])
def test_a_layout_of_another_kind_of_answer_is_refused(config: Callable[[Path], SiloConfig], task: TaskConfig, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_silo_arrays(config(tmp_path), task)
