"""DICOM series as scanners, archives and people leave them: the right volume, or one sentence that names file and tag."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from fedhelp_core.data.dicom import read_series
from fedhelp_core.data.grid import Volume
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.data.volumes import opened
from tests.core.data.writers import LPS, UPRIGHT, Change, canonical, ramp, raw, write_multiframe, write_series

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
VOXELS = ramp(12, 10, 9)


def turned(degrees: float, spacing: tuple[float, float, float] = (2, 2, 3)) -> np.ndarray:
    """Axes turned about two axes, as heads lie in scanners."""
    a, b = np.radians([degrees, degrees / 2])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-1.0, -1.0, 1.0]) * spacing
    affine[:3, 3] = (11.5, -20.25, 7)
    return affine


def same(found: Volume, voxels: np.ndarray, affine: np.ndarray, *, within: float = 1e-4) -> None:
    mine, truth = canonical(found.voxels_XYZ, found.affine), canonical(voxels, affine)
    assert mine[1] == pytest.approx(truth[1], abs=1e-3)
    assert mine[0] == pytest.approx(truth[0], abs=within)


@pytest.mark.parametrize("affine", [UPRIGHT, turned(15), turned(0, (0.7, 0.9, 5)), UPRIGHT[:, [1, 2, 0, 3]], UPRIGHT @ np.diag([1, 1, -1, 1])])
def test_geometry_is_the_scanners(affine: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, affine)
    same(read_series(tmp_path), VOXELS, affine)


def test_slices_are_ordered_by_where_they_lie_not_by_number_or_name(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(9)
    write_series(tmp_path, VOXELS, order=order)
    same(read_series(tmp_path), VOXELS, UPRIGHT)


def test_slices_without_a_number_are_not_dropped(tmp_path: Path) -> None:
    def unnumbered(one: Dataset, z: int) -> None:
        if z % 2:
            del one.InstanceNumber

    write_series(tmp_path, VOXELS, change=unnumbered)
    same(read_series(tmp_path), VOXELS, UPRIGHT)


def test_decimal_strings_over_sixteen_characters_are_read(tmp_path: Path) -> None:
    affine = turned(20)
    lps = LPS @ affine

    def long(one: Dataset, z: int) -> None:
        directions = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
        raw(one, "ImageOrientationPatient", "\\".join(f"{value:.18f}" for value in [*directions[:, 0], *directions[:, 1]]))
        raw(one, "ImagePositionPatient", "\\".join(f" {value:.17e} " for value in lps[:3, 3] + z * lps[:3, 2]))

    write_series(tmp_path, VOXELS, affine, change=long)
    same(read_series(tmp_path), VOXELS, affine)


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_multiframe_file_has_its_frames_geometry(shared: bool, tmp_path: Path) -> None:
    affine = turned(12, (1.5, 1.5, 2.5))
    write_multiframe(tmp_path / "a" / "one.dcm", VOXELS, affine, order=[4, 0, 8, 2, 6, 1, 3, 5, 7], slope=0.5, intercept=-3, shared=shared)
    for path in (tmp_path / "a", tmp_path / "a" / "one.dcm"):
        same(opened(path), VOXELS * 0.5 - 3, affine)


def test_monochrome1_is_turned_round_and_told(tmp_path: Path) -> None:
    def turn(one: Dataset, _z: int) -> None:
        one.PhotometricInterpretation = "MONOCHROME1"

    stored = VOXELS.astype(np.uint16)
    write_series(tmp_path / "a", 4095 - stored, bits=12, change=turn)
    found = read_series(tmp_path / "a")
    same(found, VOXELS, UPRIGHT)
    assert found.notes == ("MONOCHROME1 (0028,0004): intensities turned round",)
    write_series(tmp_path / "b", -1 - VOXELS, change=turn)
    same(read_series(tmp_path / "b"), VOXELS, UPRIGHT)
    with pytest.raises(Unusable, match=r"PhotometricInterpretation \(0028,0004\) is MONOCHROME1, which leaves open what 0 means in a mask"):
        read_series(tmp_path / "a", labels=True)


def test_intensities_are_rescaled_slice_by_slice(tmp_path: Path) -> None:
    def scaled(one: Dataset, z: int) -> None:
        one.RescaleSlope, one.RescaleIntercept, one.Modality = 0.5 + z, -1024, "PT"

    write_series(tmp_path, VOXELS, change=scaled)
    same(read_series(tmp_path), VOXELS * (0.5 + np.arange(9)) - 1024, UPRIGHT)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, None), (np.int8, 7), (np.uint16, 12), (np.int16, 12), (np.int32, None), (np.uint32, 30)])
def test_every_kind_of_integer_is_read(dtype: type, bits: int | None, tmp_path: Path) -> None:
    least, most = (-(2 ** ((bits or 8) - 1)), 2 ** ((bits or 8) - 1) - 1) if np.dtype(dtype).kind == "i" else (0, 2 ** min(bits or 8, 12) - 1)
    stored = np.random.default_rng(1).integers(least, most, (12, 10, 9), endpoint=True).astype(dtype)
    write_series(tmp_path, stored, bits=bits)
    same(read_series(tmp_path), stored, UPRIGHT)


def test_overlays_in_unused_bits_are_no_intensities(tmp_path: Path) -> None:
    stored = VOXELS.astype(np.uint16)
    write_series(tmp_path, stored | 0xF000, bits=12)
    same(read_series(tmp_path), stored, UPRIGHT)


@pytest.mark.parametrize("value", [-2000, 0])
def test_padding_outside_the_field_of_view_is_as_dark_as_the_darkest(value: int, tmp_path: Path) -> None:
    stored = VOXELS + np.int16(1)
    stored[0], stored[1, 1, :] = value, 40

    def pad(one: Dataset, _z: int) -> None:
        one.add_new("PixelPaddingValue", "SS", value)

    write_series(tmp_path, stored, change=pad)
    truth = stored.astype(float)
    truth[0] = stored[1:].min(axis=(0, 1))
    same(read_series(tmp_path), truth, UPRIGHT)
    same(read_series(tmp_path, labels=True), stored, UPRIGHT)


@pytest.mark.parametrize(("syntax", "options"), [
    (ImplicitVRLittleEndian, {"implicit_vr": True, "little_endian": True}),
    (ExplicitVRBigEndian, {"implicit_vr": False, "little_endian": False}), (DeflatedExplicitVRLittleEndian, {})])
@pytest.mark.parametrize("multiframe", [False, True])
def test_every_uncompressed_syntax_is_read(syntax: str, options: dict[str, bool], multiframe: bool, tmp_path: Path) -> None:
    import pydicom

    def written(path: Path) -> None:
        one = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            one.PixelData = np.frombuffer(one.PixelData, "<i2").astype(">i2").tobytes()
            one["PixelData"].VR = "OW"
        one.file_meta.TransferSyntaxUID = syntax
        again = Dataset(one)
        again.file_meta, again.preamble = one.file_meta, one.preamble
        pydicom.dcmwrite(path, again, enforce_file_format=True, **options)

    for path in [write_multiframe(tmp_path / "one", VOXELS)] if multiframe else write_series(tmp_path, VOXELS):
        written(path)
    same(read_series(tmp_path), VOXELS, UPRIGHT)


def compressed(path: Path, syntax: int) -> None:
    """With GDCM's own encoder."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


@pytest.mark.parametrize("name", [JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_compression_is_read_bit_by_bit(name: str, signed: bool, tmp_path: Path) -> None:
    import gdcm

    stored = np.random.default_rng(2).integers(-500 if signed else 0, 4000, (16, 12, 8)).astype(np.int16 if signed else np.uint16)
    for path in write_series(tmp_path, stored):
        compressed(path, gdcm.TransferSyntax.GetTSType(str(name)))
    same(read_series(tmp_path), stored, UPRIGHT)


def test_baseline_jpeg_is_read_as_it_was_compressed(tmp_path: Path) -> None:
    import gdcm

    x, y, z = np.meshgrid(*(np.linspace(0, 3, side) for side in (16, 16, 8)), indexing="ij")
    stored = (120 + 60 * np.sin(x) * np.cos(y) + 10 * z).astype(np.uint8)
    for path in write_series(tmp_path, stored):
        compressed(path, gdcm.TransferSyntax.JPEGBaselineProcess1)
    same(read_series(tmp_path), stored, UPRIGHT, within=6)


def test_what_lies_beside_slices_on_cds_is_passed_over_and_folders_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "[CT] scan (1) *"
    write_series(folder / "SER0001", VOXELS)
    for name in ("DICOMDIR", "Thumbs.db", ".DS_Store", "desktop.ini", "__MACOSX/._IM0001", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no slice")
    same(read_series(folder), VOXELS, UPRIGHT)


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    """pydicom's rules for numbers are one switch for the whole process; ten passes would have met it."""
    affine = turned(11.7)
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        write_series(folder, VOXELS, affine)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(read_series, folders * 10):
            same(found, VOXELS, affine)


def changed(**values: Any) -> Callable[[Path], None]:
    """The middle slice with other values."""

    def write(folder: Path) -> None:
        def change(one: Dataset, z: int) -> None:
            if z == 4:
                for name, value in values.items():
                    if value is None:
                        delattr(one, name)
                    elif isinstance(value, str) and name not in ("PhotometricInterpretation", "SeriesInstanceUID", "FrameOfReferenceUID"):
                        raw(one, name, value)
                    else:
                        setattr(one, name, value)

        write_series(folder, VOXELS, change=change)

    return write


def every(change: Change, **options: Any) -> Callable[[Path], None]:
    return lambda folder: write_series(folder, VOXELS, change=change, **options) and None


def tilt(one: Dataset, z: int) -> None:
    one.ImagePositionPatient = [0, z * 0.8, z * 3.0]


def beside(one: Dataset, z: int) -> None:
    one.ImagePositionPatient = [0, 5.0 * (z == 4), z * 3.0]


def as_colour(one: Dataset, _z: int) -> None:
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0


def one_file(folder: Path, name: str, body: bytes) -> None:
    write_series(folder, VOXELS)
    (folder / name).write_bytes(body)


def without_slice(folder: Path) -> None:
    write_series(folder, VOXELS)[4].unlink()


def copied(folder: Path) -> None:
    paths = write_series(folder, VOXELS)
    (folder / "copy").write_bytes(paths[3].read_bytes())


def localiser(folder: Path) -> None:
    paths = write_series(folder / "scout", VOXELS, UPRIGHT[:, [1, 2, 0, 3]])
    for path in write_series(folder, VOXELS) and paths[1:]:
        path.unlink()


def cut(folder: Path) -> None:
    path = write_series(folder, VOXELS)[2]
    path.write_bytes(path.read_bytes()[:-50])


def too_long(folder: Path) -> None:
    def change(one: Dataset, _z: int) -> None:
        one.Rows -= 1

    write_series(folder, VOXELS, change=change)


def multiframe(change: Change) -> Callable[[Path], None]:
    return lambda folder: write_multiframe(folder / "one", VOXELS, change=change) and None


def bare_frames(one: Dataset, _z: int) -> None:
    del one.PerFrameFunctionalGroupsSequence


def fewer_groups(one: Dataset, _z: int) -> None:
    one.PerFrameFunctionalGroupsSequence = DicomSequence(list(one.PerFrameFunctionalGroupsSequence)[:-1])


def points_in_time(folder: Path) -> None:
    write_multiframe(folder / "one", VOXELS, order=[0, 1, 2, 3, 4, 4, 5, 6, 7, 8])


def lookup(one: Dataset, _z: int) -> None:
    one.ModalityLUTSequence = DicomSequence([Dataset()])


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "a slice without orientation": (changed(ImageOrientationPatient=None), r"IM0004: ImageOrientationPatient \(0020,0037\) is missing"),
    "a slice without position": (changed(ImagePositionPatient=None), r"IM0004: ImagePositionPatient \(0020,0032\) is missing"),
    "a slice without spacing": (changed(PixelSpacing=None), r"IM0004: PixelSpacing \(0028,0030\) is missing"),
    "a decimal comma": (changed(PixelSpacing="2,0\\2,0"), r"PixelSpacing \(0028,0030\) is '2,0\\+2,0', 2 numbers expected"),
    "no number": (changed(ImagePositionPatient="nan\\0\\0"), r"ImagePositionPatient \(0020,0032\) is 'nan"),
    "two numbers of three": (changed(ImagePositionPatient="0\\0"), "3 numbers expected"),
    "spacing 0": (changed(PixelSpacing="0\\2"), r"PixelSpacing \(0028,0030\) is 0 x 2, positive numbers expected"),
    "negative spacing": (changed(PixelSpacing="2\\-2"), "positive numbers expected"),
    "no directions": (changed(ImageOrientationPatient="1\\0\\0\\1\\0\\0"), "two directions at right angles expected"),
    "a slice missing": (without_slice, r"IM0003 and IM0005 lie 6 mm apart, others 3 \(ImagePositionPatient \(0020,0032\)\); slices are missing"),
    "a slice twice": (copied, r"lie in the same place \(ImagePositionPatient \(0020,0032\)\), as copies, echoes"),
    "several points in time": (points_in_time, "one, frame 5 and one, frame 6 lie in the same place"),
    "a localiser beside the series": (localiser, r"SeriesInstanceUID \(0020,000E\) is .* in IM0000 and .* in scout/IM0000; keep one series' slices"),
    "another series": (changed(SeriesInstanceUID=generate_uid()), r"SeriesInstanceUID \(0020,000E\)"),
    "another frame of reference": (changed(FrameOfReferenceUID=generate_uid()), r"FrameOfReferenceUID \(0020,0052\)"),
    "another spacing": (changed(PixelSpacing="2.5\\2"), r"PixelSpacing \(0028,0030\) is 2 2 in IM0000 and 2.5 2 in IM0004"),
    "another direction": (changed(ImageOrientationPatient="0\\1\\0\\1\\0\\0"), r"ImageOrientationPatient \(0020,0037\) is 1 0 0 0 1 0 in IM0000"),
    "slices beside each other": (every(beside), "its slices do not lie above each other"),
    "a tilted gantry": (every(tilt), "its axes are not at right angles"),
    "one slice turned round": (changed(PhotometricInterpretation="MONOCHROME1"), r"PhotometricInterpretation \(0028,0004\) is MONOCHROME2 in IM0000"),
    "colours": (every(as_colour), r"PhotometricInterpretation \(0028,0004\) is RGB, MONOCHROME2 or MONOCHROME1 expected"),
    "slope 0": (changed(RescaleSlope="0"), r"RescaleSlope \(0028,1053\) is 0"),
    "a slice without slope": (changed(RescaleSlope=None), r"RescaleSlope \(0028,1053\) is 1 in IM0000 and missing in IM0004"),
    "a CT slice of another scale": (changed(RescaleIntercept="-1024"), r"RescaleIntercept \(0028,1052\) is 0 in IM0000 and -1024 in IM0004"),
    "a slice of other bits": (changed(BitsStored=12, HighBit=11), r"BitsStored \(0028,0101\) is 16 in IM0000 and 12 in IM0004"),
    "a lookup table": (every(lookup), r"ModalityLUTSequence \(0028,3000\) is there, which is not read"),
    "no pixels": (changed(PixelData=None), r"PixelData \(7FE0,0010\) is missing"),
    "half a slice": (cut, "IM0002: "),
    "another height": (too_long, r"PixelData \(7FE0,0010\) holds 240 bytes, 216 expected"),
    "text": (lambda folder: one_file(folder, "notes.txt", b"hello"), "notes.txt: is no DICOM file"),
    "an empty file": (lambda folder: one_file(folder, "IM0009", b""), "IM0009: is no DICOM file"),
    "an empty folder": (lambda folder: folder.mkdir(), "holds no DICOM file"),
    "one slice": (lambda folder: write_series(folder, VOXELS[:, :, :1]) and None, "a slice is no volume"),
    "frames that lie nowhere": (multiframe(bare_frames), r"PerFrameFunctionalGroupsSequence \(5200,9230\) is missing, so nobody knows where its 9"),
    "a frame without a place": (multiframe(fewer_groups), "describes 8 of 9 frames"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_certain_is_refused_by_file_and_tag(name: str, tmp_path: Path) -> None:
    write, said = WRONG[name]
    write(tmp_path / "series")
    with pytest.raises(Unusable, match=said) as caught:
        opened(tmp_path / "series")
    assert str(caught.value).startswith(str(tmp_path / "series"))
    assert "\n" not in str(caught.value)


def test_a_video_is_refused_by_its_syntaxs_name(tmp_path: Path) -> None:
    for path in write_series(tmp_path, VOXELS):
        old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100\0"
        body = path.read_bytes().replace(b"UI" + struct.pack("<H", len(old)) + old, b"UI" + struct.pack("<H", len(new)) + new)
        path.write_bytes(body)
    with pytest.raises(Unusable, match=r"MPEG2 Main Profile|cannot be read as DICOM"):
        read_series(tmp_path)
