"""NIfTI files and DICOM series as cubes on one grid, by MONAI's transforms. Called by `reading`, by public volumes and the phantoms.

Orientation (RAS) and spacing come from the file's affine, so that a voxel means the same in every hospital; intensities go from
the 0.5th to the 99.5th percentile to 8 bits. Shapes: S the side in voxels; the axes are right, anterior, superior.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhelp_core.budget import MOST_GRID_VOXELS, foreign
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.dicom import read_series
from fedhelp_core.data.examples import Example, mask_problem
from fedhelp_core.data.grid import Volume, require_plausible, spacing_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.nifti import read_nifti
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.lean_monai import (
    Compose,
    MetaTensor,
    Orientation,
    ResizeWithPadOrCrop,
    ScaleIntensityRangePercentiles,
    Spacing,
)

SUFFIXES = (".nii.gz", ".nii")
DICOM_SUFFIX = ".dcm"
_TIE = 1e-3  # voxels: how near a grid's length may come to a half one, where the last digit of a spacing would decide about one more
_SAME_GRID = 1e-3  # mm: how far two affines of one grid may lie apart


@dataclass(frozen=True)
class Placed:
    """A volume as the network sees it, and the way back to its own voxels."""

    cube_1SSS: NDArray[np.uint8]
    _affine: torch.Tensor
    _steps: list[Any]
    _transform: Compose

    def back(self, answer_SSS: NDArray[np.float32]) -> NDArray[np.float32]:
        """`answer_SSS`, a number for each voxel of the cube, for each voxel (X, Y, Z) of the volume: bilinear, 0 outside of the cube."""
        with _tracked():
            answer = MetaTensor(torch.from_numpy(answer_SSS)[None], affine=self._affine, applied_operations=copy.deepcopy(self._steps))
            return np.asarray(self._transform.inverse(answer)[0], np.float32)


class VolumeReader:
    """Reads any number of volumes for one task."""

    def __init__(self, task: TaskConfig) -> None:
        self._foreground = task.classes[1]
        self._spacing = task.volume.spacing
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
            return self.example(item, *checked_pair(item, self._foreground))
        except Unusable as e:
            return Example(problem=str(e))

    def example(self, item: Item, image: Volume, mask_XYZ: NDArray[np.float32]) -> Example:
        """As `read`, of a pair that has been opened.

        Raises:
            Unusable: nothing can be seen in it.
        """
        prepared = self.prepared(image.voxels_XYZ, image.affine, item.image)
        target = self.prepared_mask(mask_XYZ, image.affine)
        if not target.any():
            raise Unusable(f"{item.mask}: nothing of the mask is left in a cube of this task's spacing and image_size; raise image_size")
        return Example(prepared, target)

    def read_image(self, path: Path) -> Example:
        """A volume without a mask: a public one."""
        try:
            volume = opened(path)
            return Example(self.prepared(volume.voxels_XYZ, volume.affine, path))
        except Unusable as e:
            return Example(problem=str(e))

    def prepared(self, image: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> NDArray[np.uint8]:
        """The cube (1, S, S, S) of an array and its affine (mm, RAS+)."""
        return self.placed(image, affine, path).cube_1SSS

    def placed(self, image: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> Placed:
        """As `prepared`, with the way back.

        Raises:
            Unusable: nothing can be seen in it, or it is too large.
        """
        if image.min() == image.max():
            raise Unusable(f"{path}: every voxel is {image.flat[0]:g}; replace or remove the volume")
        sides = np.ceil(np.array(image.shape) * spacing_of(affine) / self._spacing)
        if not sides.prod() <= MOST_GRID_VOXELS:
            grid = " x ".join(f"{side:.0f}" for side in sides)
            said = f"would be {grid} voxels of {self._spacing:g} mm, at most {MOST_GRID_VOXELS:,} expected"
            raise Unusable(f"{path}: {said}; raise task.volume.spacing")
        with _tracked(), foreign(lambda why: Unusable(f"{path}: cannot be brought to the common grid ({why}); replace or remove it")):
            brought = self._image(_tensor(image, affine, self._spacing))
            cube = np.asarray(brought.round().clamp(0, 255).to(torch.uint8))
        if cube.min() == cube.max():
            raise Unusable(f"{path}: shows nothing between the 0.5th and the 99.5th percentile of its intensities; replace or remove the volume")
        return Placed(cube, brought.affine, brought.applied_operations, self._image)

    def prepared_mask(self, mask: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The same of a mask; 0 and 1."""
        with _tracked():
            cube = self._mask(_tensor((mask != 0).astype(np.float32), affine, self._spacing))
        return np.asarray((cube > 0.5).to(torch.uint8))


def checked_pair(item: Item, foreground: str) -> tuple[Volume, NDArray[np.float32]]:
    """The volume, and its mask's voxels (X, Y, Z), as they lie on disk.

    Raises:
        Unusable: one of them cannot be used, or they do not belong together.
    """
    assert item.mask is not None
    image, mask = opened(item.image), opened(item.mask, labels=True)
    problem = mask_problem(mask.voxels_XYZ, image.voxels_XYZ.shape, item.mask, foreground)
    apart = float(np.abs(image.affine - mask.affine).max())
    if not problem and apart > _SAME_GRID:
        problem = f"{item.mask}: the mask lies elsewhere than its image (their affines differ by {apart:.3g}); resample it onto the image's grid"
    if problem:
        raise Unusable(problem)
    return image, mask.voxels_XYZ


def opened(path: Path, *, labels: bool = False) -> Volume:
    """The volume in a NIfTI file, in a folder of DICOM slices, or in a multi-frame DICOM file. `labels`: it is a mask.

    Raises:
        Unusable: no such volume, or none that can be used.
    """
    name = path.name.lower()
    if not path.exists():
        raise Unusable(f"{path}: no such volume; correct the list or the folder")
    if path.is_dir() or name.endswith(DICOM_SUFFIX):
        volume = read_series(path, labels=labels)
    elif name.endswith(SUFFIXES):
        volume = read_nifti(path)
    else:
        files = f"a NIfTI file ({', '.join(SUFFIXES)}), a multi-frame DICOM file ({DICOM_SUFFIX})"
        raise Unusable(f"{path}: {files} or a folder of DICOM slices expected")
    require_plausible(volume, path)
    return volume


def _tensor(voxels: NDArray[np.float32], affine: NDArray[np.float64], target: float) -> Any:
    along = _along_axes(affine, _without_ties(voxels.shape, spacing_of(affine), target))
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels))[None], affine=torch.from_numpy(along))


def _without_ties(shape: tuple[int, ...], spacing: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """`spacing`, nudged where the grid of spacing `target` would have half a voxel: a series and its conversion, whose spacings differ in the
    seventh digit, get grids of one size, the even one that rounding takes of an exact half.
    """
    steps = np.array(shape) - 1
    length = steps * spacing / target
    half = np.floor(length) + 0.5
    tied = np.abs(length - half) < _TIE
    even = half + np.sign(np.round(half + 1) - (half + 1)) * _TIE  # MONAI's grid has round(length + 1) voxels
    return np.where(tied, even * target / np.maximum(steps, 1), spacing)


def _along_axes(affine: NDArray[np.float64], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of a volume at the origin with each axis turned exactly into the patient's nearest one, `spacing` mm between voxels.

    The network's cube lies along the volume's own axes anyway. Of axes that are oblique, MONAI finds the corner only if they are at right angles to
    1e-8, which no file's numbers are; else it moves the volume by up to half a voxel, and a mask whose numbers differ in the last digit otherwise.
    """
    from nibabel import orientations

    find: Any = orientations.io_orientation
    along = np.diag([0.0, 0.0, 0.0, 1.0])  # the cube does not depend on where the volume lies, and far numbers would blur its last digits
    for axis, (nearest, sign) in enumerate(find(affine)):
        along[int(nearest), axis] = sign * spacing[axis]
    return along


_TRACKING = threading.Lock()  # MONAI's switch is the process's


@contextlib.contextmanager
def _tracked() -> Iterator[None]:
    """MONAI keeps affines while something is brought to the common grid."""
    from fedhelp_core.lean_monai import get_track_meta, set_track_meta

    with _TRACKING:
        before = get_track_meta()
        set_track_meta(True)
        try:
            yield
        finally:
            set_track_meta(before)
