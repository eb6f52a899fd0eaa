"""NIfTI files and DICOM series as cubes on one grid, by MONAI's transforms. Called by `reading`, by public volumes and the phantoms.

Orientation (RAS) and spacing come from the file's affine, so that a voxel means the same in every hospital; intensities go from
the 0.5th to the 99.5th percentile to 8 bits. Shapes: S the side in voxels; the axes are right, anterior, superior.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedhelp_core.budget import MOST_GRID_VOXELS, foreign
from fedhelp_core.config.task import IntensityConfig, TaskConfig
from fedhelp_core.data.dicom import read_series
from fedhelp_core.data.examples import Example, target_of
from fedhelp_core.data.grid import Volume, require_plausible, spacing_of
from fedhelp_core.data.items import Item
from fedhelp_core.data.marks import Marks
from fedhelp_core.data.nifti import read_nifti
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.lean_monai import (
    Compose,
    MetaTensor,
    NormalizeIntensity,
    Orientation,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
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

    cube_CSSS: NDArray[np.uint8]
    _affine: torch.Tensor
    _steps: list[Any]
    _transform: Compose

    def back(self, answer_SSS: NDArray[np.float32]) -> NDArray[np.float32]:
        """`answer_SSS`, a number for each voxel of the cube, for each voxel (X, Y, Z) of the volume: bilinear, 0 outside of the cube."""
        with _tracked():
            answer = MetaTensor(torch.from_numpy(answer_SSS)[None], affine=self._affine, applied_operations=copy.deepcopy(self._steps))
            return np.asarray(self._transform.inverse(answer)[0], np.float32)


class VolumeReader:
    """Reads any number of volumes for one task. An image is a volume, or several on one grid, one for each of the task's channels."""

    def __init__(self, task: TaskConfig) -> None:
        self._channels = task.channels
        self._marks = Marks.of(task) if task.per_pixel else None
        self._spacing = task.volume.spacing
        self._within = "within task.intensity" if task.intensity else "between the 0.5th and the 99.5th percentile"
        spacing, side = (task.volume.spacing,) * 3, (task.image_size,) * 3
        # MONAI's resampling asks for tracked affines; what the algorithm sees has none
        self._images = [Compose([
            Orientation("RAS", labels=None), Spacing(spacing, mode="bilinear", padding_mode="border"),
            *_scaled_by(intensity), ResizeWithPadOrCrop(side, mode="constant", value=0)]) for intensity in task.intensity_of_each]
        self._mask = Compose([
            Orientation("RAS", labels=None), Spacing(spacing, mode="nearest", padding_mode="zeros"),
            ResizeWithPadOrCrop(side, mode="constant", value=0)])

    def read(self, item: Item) -> Example:
        """Image (C, S, S, S) and target of `item`, or what is wrong with them."""
        try:
            if self._marks is None:
                return Example(self.placed(self.opened(item), item.image).cube_CSSS, target_of(item))
            return self.example(item, *self.checked_pair(item))
        except Unusable as e:
            return Example(problem=str(e))

    def opened(self, item: Item) -> list[Volume]:
        """The volume of each channel, as it lies on disk.

        Raises:
            Unusable: one of them cannot be used, or they do not belong together.
        """
        return opened_channels((item.image, *item.sequences), self._channels)

    def checked_pair(self, item: Item) -> tuple[list[Volume], NDArray[np.float32]]:
        """The volumes, and their mask's voxels (X, Y, Z), as they lie on disk.

        Raises:
            Unusable: one of them cannot be used, or they do not belong together.
        """
        assert item.mask is not None
        assert self._marks is not None
        channels, mask = self.opened(item), opened(item.mask, labels=True)
        problem = self._marks.problem(mask.voxels_XYZ, channels[0].voxels_XYZ.shape, item.mask)
        if problem:
            raise Unusable(problem)
        _require_same_place(channels[0], mask, item.mask, "the mask", "its image")
        return channels, mask.voxels_XYZ

    def example(self, item: Item, channels: Sequence[Volume], mask_XYZ: NDArray[np.float32]) -> Example:
        """As `read`, of a pair that has been opened.

        Raises:
            Unusable: nothing can be seen in it.
        """
        assert self._marks is not None
        image = self.placed(channels, item.image).cube_CSSS
        target = self.prepared_target(self._marks.target(mask_XYZ), channels[0].affine)
        if not target.any() and self._marks.must_be_somewhere():
            raise Unusable(f"{item.mask}: nothing of the mask is left in a cube of this task's spacing and image_size; raise image_size")
        return Example(image, target)

    def read_image(self, path: Path) -> Example:
        """A volume without a mask: a public one."""
        try:
            return Example(self.placed(opened_channels((path,), self._channels), path).cube_CSSS)
        except Unusable as e:
            return Example(problem=str(e))

    def prepared(self, image: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> NDArray[np.uint8]:
        """The cube (1, S, S, S) of an array and its affine (mm, RAS+)."""
        return self.placed([Volume(image, affine)], path).cube_CSSS

    def placed(self, channels: Sequence[Volume], path: Path) -> Placed:
        """The channels' volumes in the network's cube, with the way back.

        Raises:
            Unusable: nothing can be seen in one, it is too large, or there are more or fewer of them than the task has.
        """
        if len(channels) != self._channels:
            raise Unusable(f"{path}: {self._channels} sequences expected (task.channels), got {len(channels)}")
        found = [self._placed(one.voxels_XYZ, one.affine, path, image) for one, image in zip(channels, self._images, strict=True)]
        return found[0] if len(found) == 1 else replace(found[0], cube_CSSS=np.concatenate([one.cube_CSSS for one in found]))

    def _placed(self, image: NDArray[np.float32], affine: NDArray[np.float64], path: Path, transform: Compose) -> Placed:
        if image.min() == image.max():
            raise Unusable(f"{path}: every voxel is {image.flat[0]:g}; replace or remove the volume")
        sides = np.ceil(np.array(image.shape) * spacing_of(affine) / self._spacing)
        if not sides.prod() <= MOST_GRID_VOXELS:
            grid = " x ".join(f"{side:.0f}" for side in sides)
            said = f"would be {grid} voxels of {self._spacing:g} mm, at most {MOST_GRID_VOXELS:,} expected"
            raise Unusable(f"{path}: {said}; raise task.volume.spacing")
        with _tracked(), foreign(lambda why: Unusable(f"{path}: cannot be brought to the common grid ({why}); replace or remove it")):
            brought = transform(_tensor(image, affine, self._spacing))
            cube = np.asarray(brought.round().clamp(0, 255).to(torch.uint8))
        if cube.min() == cube.max():
            raise Unusable(f"{path}: shows nothing {self._within} of its intensities; replace or remove the volume")
        return Placed(cube, brought.affine, brought.applied_operations, transform)

    def prepared_target(self, target_KXYZ: NDArray[np.uint8], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The same of a target (K, X, Y, Z): its nearest numbers."""
        with _tracked():
            cubes = [self._mask(_tensor(plane.astype(np.float32), affine, self._spacing)) for plane in target_KXYZ]
        return np.concatenate([np.asarray(cube.round().to(torch.uint8)) for cube in cubes])


def _scaled_by(intensity: IntensityConfig) -> list[Any]:
    """Intensities to 0 to 255, as the task has it."""
    low, high = intensity.ends
    if intensity.how == "percentiles":
        return [ScaleIntensityRangePercentiles(low, high, 0, 255, clip=True)]
    centred = [NormalizeIntensity(nonzero=True)] if intensity.how == "z-score" else []
    return [*centred, ScaleIntensityRange(low, high, 0, 255, clip=True)]


def opened_channels(paths: Sequence[Path], channels: int) -> list[Volume]:
    """The volume of each channel: a file each, which share a grid, or one file of four dimensions.

    Raises:
        Unusable: one of them cannot be used, or they do not belong together.
    """
    if len(paths) == 1 and channels > 1:
        path = paths[0]
        if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
            raise Unusable(f"{path}: one NIfTI file with {channels} sequences (task.channels) expected, or a file for each in the list")
        whole = read_nifti(path, channels)
        found = [replace(whole, voxels_XYZ=np.ascontiguousarray(whole.voxels_XYZ[..., number])) for number in range(channels)]
        for one in found:
            require_plausible(one, path)
        return found
    found = [opened(path) for path in paths]
    for path, one in zip(paths[1:], found[1:], strict=True):
        if one.voxels_XYZ.shape != found[0].voxels_XYZ.shape:
            sides = [" x ".join(map(str, volume.voxels_XYZ.shape)) for volume in (one, found[0])]
            raise Unusable(f"{path}: is {sides[0]} voxels, its first sequence {sides[1]}; register the sequences of an image to each other")
        _require_same_place(found[0], one, path, "this sequence", "the first one")
    return found


def _require_same_place(first: Volume, other: Volume, path: Path, called: str, first_called: str) -> None:
    apart = float(np.abs(first.affine - other.affine).max())
    if apart > _SAME_GRID:
        grid = "the image's grid" if called == "the mask" else "one grid"
        raise Unusable(f"{path}: {called} lies elsewhere than {first_called} (their affines differ by {apart:.3g}); resample it onto {grid}")


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
