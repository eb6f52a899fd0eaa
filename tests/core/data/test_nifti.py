"""NIfTI files as scanners' converters, FSL, SPM and people leave them: the right volume, or one sentence that names file and field."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedhelp_core.data.nifti import read_nifti
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.data.volumes import opened
from tests.core.data.test_dicom import same, turned
from tests.core.data.writers import UPRIGHT, ramp, write_nifti

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
VOXELS = ramp(12, 10, 9)


@pytest.mark.parametrize("affine", [
    UPRIGHT, turned(15), turned(0, (0.7, 0.9, 5)), UPRIGHT[:, [1, 2, 0, 3]], UPRIGHT @ np.diag([1, 1, -1, 1]), np.diag([1.0, 1, 1, 1])])
@pytest.mark.parametrize("version", [1, 2])
def test_geometry_is_the_headers(affine: np.ndarray, version: int, tmp_path: Path) -> None:
    same(read_nifti(write_nifti(tmp_path / "a.nii", VOXELS, affine, version=version)), VOXELS, affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_plain_number_is_read(dtype: type, big_endian: bool, tmp_path: Path) -> None:
    stored = (VOXELS % 100).astype(dtype)
    found = read_nifti(write_nifti(tmp_path / "a.nii.gz", stored, slope=0.25, intercept=-1024, big_endian=big_endian))
    same(found, stored.astype(float) * 0.25 - 1024, UPRIGHT)


def test_slope_0_means_no_scaling(tmp_path: Path) -> None:
    same(read_nifti(write_nifti(tmp_path / "a.nii", VOXELS, slope=0, intercept=7)), VOXELS, UPRIGHT)


@pytest.mark.parametrize(("unit", "factor", "note"), [(0, 1.0, ()), (2, 1.0, ()), (1, 1000.0, "m"), (3, 0.001, "µm")])
def test_lengths_are_brought_to_mm(unit: int, factor: float, note: Any, tmp_path: Path) -> None:
    def in_unit(header: Any) -> None:
        header["xyzt_units"] = unit + 8  # seconds beside it

    scale = np.diag([1 / factor] * 3 + [1.0])
    found = read_nifti(write_nifti(tmp_path / "a.nii", VOXELS, scale @ UPRIGHT, change=in_unit))
    same(found, VOXELS, UPRIGHT)
    assert found.notes == (note and (f"lengths in {note} (xyzt_units) brought to mm",))


@pytest.mark.parametrize("name", ["a.nii", "a.NII", "a.nii.gz", "a.Nii.GZ", "[a] 1*.nii.gz"])
def test_endings_in_capitals_and_odd_names_are_read(name: str, tmp_path: Path) -> None:
    same(opened(write_nifti(tmp_path / name, VOXELS)), VOXELS, UPRIGHT)


def test_a_file_whose_name_says_gzip_and_that_is_none_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    plain, packed = write_nifti(tmp_path / "a.nii", VOXELS), write_nifti(tmp_path / "b.nii.gz", VOXELS)
    same(opened(plain.rename(tmp_path / "c.nii.gz")), VOXELS, UPRIGHT)
    same(opened(packed.rename(tmp_path / "d.nii")), VOXELS, UPRIGHT)


def test_a_file_of_one_volume_in_four_or_five_dimensions_is_that_volume(tmp_path: Path) -> None:
    for axes in (1, 2):
        same(read_nifti(write_nifti(tmp_path / "a.nii", VOXELS.reshape(*VOXELS.shape, *[1] * axes))), VOXELS, UPRIGHT)


def test_extensions_and_what_nibabel_writes_are_read(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS * 0.37, UPRIGHT)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made by hand" * 20))
    image.set_data_dtype(np.int16)  # with a slope of nibabel's own
    image.to_filename(tmp_path / "a.nii.gz")
    same(read_nifti(tmp_path / "a.nii.gz"), VOXELS * 0.37, UPRIGHT, within=0.01)


def test_of_two_affines_that_say_the_same_axes_and_spacing_the_sform_is_used(tmp_path: Path) -> None:
    def moved(header: Any) -> None:
        header["srow_x"][3] = 33

    found = read_nifti(write_nifti(tmp_path / "a.nii", VOXELS, change=moved))
    assert found.affine[0, 3] == 33


def header(**fields: Any) -> Callable[[Path], None]:
    def change(one: Any) -> None:
        for name, value in fields.items():
            if isinstance(value, dict):
                for place, number in value.items():
                    one[name][place] = number
            else:
                one[name] = value

    return lambda path: write_nifti(path, VOXELS, change=change) and None


def of(voxels: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: write_nifti(path, voxels, **options) and None


def cut(at: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_nifti(path, VOXELS)
        path.write_bytes(path.read_bytes()[:at])

    return write


def damaged_sum(path: Path) -> None:
    write_nifti(path.with_name("b.nii.gz"), VOXELS)
    body = bytearray(path.with_name("b.nii.gz").read_bytes())
    body[-6] ^= 1  # of the checksum at the end
    path.write_bytes(body)


def more_bytes(path: Path) -> None:
    write_nifti(path, VOXELS)
    path.write_bytes(path.read_bytes() + b"\0\0")


def huge(path: Path) -> None:
    def change(one: Any) -> None:
        one["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]

    write_nifti(path.with_name("b.nii"), VOXELS, change=change)
    path.write_bytes(gzip.compress(path.with_name("b.nii").read_bytes()))


COLOUR = np.zeros((12, 10, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SHEARED = UPRIGHT.copy()
SHEARED[0, 1] = 0.5

WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "RGB24": (of(COLOUR), r"its voxels are colours \(RGB\) \(datatype 128\), one plain number a voxel expected"),
    "complex": (of(VOXELS.astype(np.complex64)), r"its voxels are complex64 \(datatype 32\)"),
    "long double": (header(datatype=1536, bitpix=128), r"\(datatype 1536\), one plain number a voxel expected"),
    "one bit a voxel": (header(datatype=1, bitpix=1), r"datatype 1\b"),
    "an unknown datatype": (header(datatype=77), "datatype 77 is none that NIfTI knows"),
    "bitpix of another type": (header(bitpix=8), "bitpix is 8, but datatype 4 has 16 bits"),
    "metres by mistake": (header(xyzt_units=1), r"its voxels are 2000 x 2000 x 3000 mm, .* are its units \(xyzt_units\) right\?"),
    "micrometres by mistake": (header(xyzt_units=3), "its voxels are 0.002 x 0.002 x 0.003 mm"),
    "no unit of length": (header(xyzt_units=5), "xyzt_units 5 names no unit of length"),
    "longer than any patient": (of(np.zeros((100, 8, 8), np.int16), affine=np.diag([40.0, 2, 2, 1])), "is 4000 mm long at 40 x 2 x 2 mm a voxel"),
    "no affine": (header(qform_code=0, sform_code=0), r"has no affine \(qform and sform codes are 0\)"),
    "sform of another spacing": (header(srow_x={0: -4}), "pixdim says 2 x 2 x 3, sform 4 x 2 x 3, so nobody knows its spacing"),
    "pixdim of another spacing": (header(pixdim={1: 4}), "pixdim says 4 x 2 x 3, sform 2 x 2 x 3"),
    "sform of another side": (header(srow_x={0: 2}), "sform says RPS, qform LPS, so nobody knows which way it lies"),
    "sform not finite": (header(srow_y={1: np.nan}), r"its affine cannot be inverted \(sform is not finite\)"),
    "qform of no rotation": (header(sform_code=0, quatern_b=1, quatern_c=1), "its qform cannot be used"),
    "qfac of 7": (header(pixdim={0: 7}), "its qform cannot be used"),
    "spacing 0": (header(pixdim={3: 0}), "pixdim is 2 x 2 x 0, positive numbers expected"),
    "negative spacing": (header(pixdim={3: -3}), "pixdim is 2 x 2 x -3, positive numbers expected"),
    "axes not at right angles": (of(VOXELS, affine=SHEARED), "its axes are not at right angles|its qform cannot be used|qform"),
    "slope NaN": (header(scl_slope=np.nan), "scl_slope is nan and scl_inter 0, so nobody knows its intensities"),
    "intercept infinite": (header(scl_inter=np.inf), "scl_inter inf"),
    "a series in time": (of(np.stack([VOXELS] * 2, axis=-1)), "three dimensions expected, got 12 x 10 x 9 x 2"),
    "a slice": (of(VOXELS[:, :, :1]), "is 12 x 10 x 1 voxels, every side of at least 8 expected"),
    "dim of 0": (header(dim={2: 0}), "makes no sense"),
    "negative dim": (header(dim={1: -12}), "makes no sense"),
    "one voxel fewer than dim says": (header(dim={1: 13}), "dim and bitpix say 2,340 bytes of voxels, 2,160 found"),
    "one row fewer than there are": (header(dim={2: 9}), "dim and bitpix say 1,944 bytes of voxels, more found"),
    "a pair of files": (header(magic=b"ni1"), "a pair of .hdr and .img"),
    "Analyze": (header(magic=b""), "Analyze"),
    "vox_offset inside the header": (header(vox_offset=100), "vox_offset is 100, a whole number from 352 to 67108864 expected"),
    "vox_offset moved": (header(vox_offset=354), "2,160 bytes of voxels, 2,158 found"),
    "an empty file": (cut(0), "sizeof_hdr is neither 348 nor 540"),
    "half a header": (cut(200), "cannot be read as NIfTI"),
    "half the voxels": (cut(1500), "2,160 bytes of voxels, 1,148 found"),
    "bytes left over": (more_bytes, "more found"),
    "a damaged checksum": (damaged_sum, "cannot be read as NIfTI .*CRC check failed"),
    "32767 voxels a side": (huge, r"is 32767 x 32767 x 32767 voxels \(dim\)"),
    "NaN": (of(np.where(VOXELS > 500, np.nan, VOXELS).astype(np.float32)), "holds NaN or infinite voxels"),
    "larger than float32": (of(VOXELS.astype(np.float64) * 1e300), "holds NaN or infinite voxels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_certain_is_refused_by_file_and_field(name: str, tmp_path: Path) -> None:
    write, said = WRONG[name]
    write(tmp_path / "a.nii")
    with pytest.raises(Unusable, match=said) as caught:
        opened(tmp_path / "a.nii")
    assert str(caught.value).startswith(str(tmp_path / "a.nii: "))
    assert "\n" not in str(caught.value)


def test_a_gzipped_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", VOXELS)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(Unusable, match="cannot be read as NIfTI"):
            opened(path)


def test_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(Unusable, match=r"a NIfTI file \(\.nii\.gz, \.nii\), a multi-frame DICOM file \(\.dcm\) or a folder of DICOM slices expected"):
        opened(tmp_path / "a.mha")
