"""Small files in the real formats, as scanners and programs write them, rightly or wrongly. Shared by the tests of what files hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
UPRIGHT = np.diag([-2.0, -2.0, 3.0, 1.0])  # axial slices of 2 x 2 mm, 3 mm apart, as most scanners write them
Change = Callable[[Dataset, int], None]


def ramp(*shape: int) -> NDArray[np.int16]:
    """Every voxel another value."""
    return np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)


def raw(dataset: Dataset, keyword: str, text: str) -> None:
    """Write an element's text as it is, however wrong."""
    tag = tag_for_keyword(keyword)
    value = text.encode()
    value += b" " * (len(value) % 2)
    dataset[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)


def numbers(values: Sequence[float]) -> list[str]:
    return [f"{value:.9g}"[:16] for value in values]


def _dataset(stored_ZYX: NDArray[Any], kind: str, bits: int | None) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = kind, generate_uid(), ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = kind, meta.MediaStorageSOPInstanceUID, "CT"
    one.Rows, one.Columns = stored_ZYX.shape[-2:]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = stored_ZYX.dtype.itemsize * 8
    one.BitsStored = bits or one.BitsAllocated
    one.HighBit = one.BitsStored - 1
    one.PixelRepresentation = int(stored_ZYX.dtype.kind == "i")
    one.PixelData = np.ascontiguousarray(stored_ZYX).tobytes()
    return one


def _orientation(affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """LPS affine; ImageOrientationPatient; PixelSpacing."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    return lps, numbers([*directions[:, 0], *directions[:, 1]]), numbers([spacing[1], spacing[0]])


def write_series(
    folder: Path, stored_XYZ: NDArray[Any], affine: NDArray[np.float64] = UPRIGHT, *, order: Sequence[int] | None = None, bits: int | None = None,
    change: Change = lambda _slice, _z: None, **save: Any,
) -> list[Path]:
    """A file a slice, named and numbered in `order`; `change` may spoil each."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    lps, orientation, spacing = _orientation(affine)
    paths = []
    for number, z in enumerate(order if order is not None else range(stored_XYZ.shape[2])):
        one = _dataset(stored_XYZ[:, :, z].T, CTImageStorage, bits)
        one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID, one.InstanceNumber = series, study, frame, number + 1
        one.ImageOrientationPatient, one.PixelSpacing = orientation, spacing
        one.ImagePositionPatient = numbers(lps[:3, 3] + z * lps[:3, 2])
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        change(one, z)
        paths.append(folder / f"IM{number:04d}")
        one.save_as(paths[-1], enforce_file_format=True, **save)
    return paths


def write_multiframe(
    path: Path, stored_XYZ: NDArray[Any], affine: NDArray[np.float64] = UPRIGHT, *, order: Sequence[int] | None = None, slope: float = 1,
    intercept: float = 0, shared: bool = True, change: Change = lambda _file, _z: None,
) -> Path:
    """An enhanced multi-frame file; orientation and spacing `shared` by all frames, or in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(order if order is not None else range(stored_XYZ.shape[2]))
    one = _dataset(np.stack([stored_XYZ[:, :, z].T for z in order]), EnhancedMRImageStorage, None)
    one.NumberOfFrames, one.SeriesInstanceUID = len(order), generate_uid()
    lps, orientation, spacing = _orientation(affine)

    def common() -> Dataset:
        group, directions, measures, transformation = Dataset(), Dataset(), Dataset(), Dataset()
        directions.ImageOrientationPatient, measures.PixelSpacing = orientation, spacing
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = DicomSequence([directions]), DicomSequence([measures])
        group.PixelValueTransformationSequence = DicomSequence([transformation])
        return group

    groups = []
    for z in order:
        group, place = Dataset() if shared else common(), Dataset()
        place.ImagePositionPatient = numbers(lps[:3, 3] + z * lps[:3, 2])
        group.PlanePositionSequence = DicomSequence([place])
        groups.append(group)
    one.SharedFunctionalGroupsSequence = DicomSequence([common() if shared else Dataset()])
    one.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    change(one, 0)
    one.save_as(path, enforce_file_format=True)
    return path


def write_nifti(
    path: Path, voxels: NDArray[Any], affine: NDArray[np.float64] = UPRIGHT, *, slope: float = 1, intercept: float = 0, version: int = 1,
    change: Callable[[Any], None] = lambda _header: None, big_endian: bool = False,
) -> Path:
    """`voxels` are what is stored; `change` may spoil the header after everything else is in it."""
    kind: Any = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(voxels, affine, dtype=voxels.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    header["vox_offset"] = 352 if version == 1 else 544
    change(header)
    order = ">" if big_endian else "<"
    if big_endian:
        header = header.as_byteswapped(">")
    body = np.asarray(voxels).astype(np.asarray(voxels).dtype.newbyteorder(order)).tobytes(order="F")
    everything = header.binaryblock + b"\0" * 4 + body
    if path.name.lower().endswith(".gz"):
        import gzip

        everything = gzip.compress(everything, compresslevel=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(everything)
    return path


def canonical(voxels: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same volume with its axes to the right, front and top, as nibabel turns them."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.asarray(voxels, np.float64), affine))
    return np.asarray(image.dataobj), image.affine
