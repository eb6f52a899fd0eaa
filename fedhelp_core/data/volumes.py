"""NIfTI files and DICOM series as cubes on one grid, by MONAI's transforms. Called by `examples`, by public volumes and the phantoms.

Orientation (RAS) and spacing come from the file's affine, so that a voxel means the same in every hospital; intensities go from
the 0.5th to the 99.5th percentile to 8 bits. Shapes: S the side in voxels; the axes are right, anterior, superior.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.examples import Example, Unusable, mask_problem
from fedhelp_core.data.items import Item
from fedhelp_core.lean_monai import (
    Compose,
    MetaTensor,
    Orientation,
    PydicomReader,
    ResizeWithPadOrCrop,
    ScaleIntensityRangePercentiles,
    Spacing,
)

SUFFIXES = (".nii.gz", ".nii")
_LEAST_SIDE = 8  # voxels, as read: a volume thinner than this is a slice
_SAME_GRID = 1e-3  # mm: how far two affines of one grid may lie apart


class VolumeReader:
    """Reads any number of volumes for one task."""

    def __init__(self, task: TaskConfig) -> None:
        self._foreground = task.classes[1]
        spacing, side = (task.volume.spacing,) * 3, (task.image_size,) * 3
        # MONAI's resampling asks for tracked affines; what the algorithm sees has none
        self._image = Compose([
            Orientation("RAS", labels=None), Spacing(spacing, mode="bilinear", padding_mode="border"),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 255, clip=True), ResizeWithPadOrCrop(side, mode="constant", value=0)])
        self._mask = Compose([
            Orientation("RAS", labels=None), Spacing(spacing, mode="nearest", padding_mode="zeros"),
            ResizeWithPadOrCrop(side, mode="constant", value=0)])

    def read(self, item: Item) -> Example:
        """Image (1, S, S, S) and mask (1, S, S, S) of `item`, or what is wrong with them."""
        try:
            image, mask, affine = checked_pair(item, self._foreground)
            prepared = self.prepared(image, affine, item.image)
        except Unusable as e:
            return Example(problem=str(e))
        target = self.prepared_mask(mask, affine)
        if not target.any():
            return Example(problem=f"{item.mask}: nothing of the mask is left in a cube of this task's spacing and image_size; raise image_size")
        return Example(prepared, target)

    def read_image(self, path: Path) -> Example:
        """A volume without a mask: a public one."""
        try:
            image, affine = opened(path)
            return Example(self.prepared(image, affine, path))
        except Unusable as e:
            return Example(problem=str(e))

    def prepared(self, image: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> NDArray[np.uint8]:
        """The cube (1, S, S, S) of an array and its affine (mm, RAS+)."""
        if image.min() == image.max():
            raise Unusable(f"{path}: every voxel is {image.flat[0]:g}; replace or remove the volume")
        with _tracked():
            cube = self._image(_tensor(image, affine))
        return np.asarray(cube.round().clamp(0, 255).to(torch.uint8))

    def prepared_mask(self, mask: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The same of a mask; 0 and 1."""
        with _tracked():
            cube = self._mask(_tensor((mask != 0).astype(np.float32), affine))
        return np.asarray((cube > 0.5).to(torch.uint8))


def checked_pair(item: Item, foreground: str) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Voxels of the volume and of its mask (X, Y, Z), and their affine, as they lie on disk.

    Raises:
        Unusable: one of them cannot be used, or they do not belong together.
    """
    assert item.mask is not None
    image, affine = opened(item.image)
    mask, mask_affine = opened(item.mask)
    problem = mask_problem(mask, image.shape, item.mask, foreground)
    if not problem and np.abs(affine - mask_affine).max() > _SAME_GRID:
        problem = f"{item.mask}: the mask lies elsewhere than its image (their affines differ); resample it onto the image's grid"
    if problem:
        raise Unusable(problem)
    return image, mask, affine


def opened(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels (X, Y, Z) float32 and affine (mm, RAS+) of a NIfTI file, or of the DICOM series in a folder.

    Raises:
        Unusable: no such volume, or none that can be used.
    """
    if not path.exists():
        raise Unusable(f"{path}: no such volume; correct the list or the folder")
    voxels, affine = _dicom(path) if path.is_dir() else _nifti(path)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise Unusable(f"{path}: three dimensions expected, got {' x '.join(map(str, voxels.shape))}; give one volume a file")
    if min(voxels.shape) < _LEAST_SIDE:
        shape = " x ".join(map(str, voxels.shape))
        raise Unusable(f"{path}: is {shape} voxels, every side of at least {_LEAST_SIDE} expected; a slice is no volume")
    if not np.isfinite(voxels).all():
        raise Unusable(f"{path}: holds NaN or infinite voxels; replace or remove it")
    return voxels, affine


def _nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    if not path.name.endswith(SUFFIXES):
        raise Unusable(f"{path}: a NIfTI file ({', '.join(SUFFIXES)}) or a folder of DICOM slices expected")
    with _quiet_nibabel():
        try:
            file: Any = nibabel.Nifti1Image.from_filename(path)
            codes = int(file.header["qform_code"]), int(file.header["sform_code"])
            affine = np.asarray(file.affine, dtype=np.float64)
            voxels = np.asarray(file.dataobj, dtype=np.float32)
        except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError) as e:
            raise Unusable(f"{path}: cannot be read as NIfTI ({_first_line(e)}); replace or remove it") from None
    if codes == (0, 0):
        raise Unusable(f"{path}: has no affine (qform and sform codes are 0), so nobody knows how it lies; convert it again")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Unusable(f"{path}: its affine cannot be inverted; convert it again from the scanner's files")
    return voxels, affine


def _dicom(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    from pydicom.errors import InvalidDicomError

    reader = PydicomReader(swap_ij=True, affine_lps_to_ras=True)
    try:
        voxels, meta = reader.get_data(reader.read(str(folder)))
    except (OSError, InvalidDicomError, ValueError, AttributeError, KeyError, TypeError, IndexError, RuntimeError) as e:
        raise Unusable(f"{folder}: cannot be read as one DICOM series ({_first_line(e)}); keep one series' slices in it and nothing else") from None
    return np.asarray(voxels, dtype=np.float32), np.asarray(meta["affine"], dtype=np.float64)


def _tensor(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> Any:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels))[None], affine=torch.from_numpy(affine))


@contextlib.contextmanager
def _tracked() -> Any:
    """MONAI keeps affines while something is brought to the common grid."""
    from fedhelp_core.lean_monai import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)


@contextlib.contextmanager
def _quiet_nibabel() -> Any:
    """What nibabel logs about a damaged header is in our own sentence."""
    logger = logging.getLogger("nibabel.global")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
