"""A volume on its grid, whichever file it came from, and what a grid must be before anybody may trust it. Called by `nifti`, `dicom`, `volumes`.

The contract of both readers: `affine` says in mm where each voxel lies, as the scanner meant it, and `voxels_XYZ` are intensities as the scanner
meant them. A file for which one of them is not certain is `Unusable`; the sentence names the file and the field or tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.unusable import Unusable

_LEAST_SIDE = 8        # voxels, as read: a volume thinner than this is a slice
_SPACINGS = 0.005, 50  # mm: from the finest specimen scanners to the thickest localisers
_LONGEST = 3000        # mm: longer than any person, so the units are wrong
_SHEAR = 0.5           # voxels: how far the far end of a row may lie from where right angles put it


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) float32, and their affine (4, 4) to mm, RAS+."""

    voxels_XYZ: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    """What was converted in reading, in words, for people to look at."""
    slices: tuple[tuple[Path, int], ...] = ()
    """Of a DICOM series: the file of each slice along the last axis, and its frame in that from 0."""


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """mm between voxels, by axis."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def require_plausible(volume: Volume, path: Path) -> None:
    """Nothing where `volume` is three-dimensional, of a patient's size, at right angles and finite.

    Raises:
        Unusable: it is not.
    """
    sides = " x ".join(map(str, volume.voxels_XYZ.shape))
    if volume.voxels_XYZ.ndim != 3:
        raise Unusable(f"{path}: three dimensions expected, got {sides}; give one volume a file")
    require_plausible_affine(volume.affine, volume.voxels_XYZ.shape, path)
    if min(volume.voxels_XYZ.shape) < _LEAST_SIDE:
        raise Unusable(f"{path}: is {sides} voxels, every side of at least {_LEAST_SIDE} expected; a slice is no volume")
    if not np.isfinite(volume.voxels_XYZ).all():
        raise Unusable(f"{path}: holds NaN or infinite voxels; replace or remove it")


def require_plausible_affine(affine: NDArray[np.float64], shape: tuple[int, ...], path: Path) -> None:
    """As `require_plausible`, of the affine alone.

    Raises:
        Unusable: see above.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Unusable(f"{path}: its affine cannot be inverted; convert it again from the scanner's files")
    spacing = spacing_of(affine)
    said = " x ".join(f"{side:g}" for side in spacing)
    if not ((spacing >= _SPACINGS[0]) & (spacing <= _SPACINGS[1])).all():
        raise Unusable(f"{path}: its voxels are {said} mm, {_SPACINGS[0]} to {_SPACINGS[1]} expected; are its units (xyzt_units) right?")
    extent = spacing * shape[:3]
    if extent.max() > _LONGEST:
        raise Unusable(f"{path}: is {extent.max():.0f} mm long at {said} mm a voxel, longer than any patient; are its units (xyzt_units) right?")
    if _shear(affine, shape) > _SHEAR:
        raise Unusable(f"{path}: its axes are not at right angles (a tilted gantry, or a registration's shear); resample it onto such a grid")


def _shear(affine: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How many voxels the far end of any row lies from where right angles would put it."""
    spacing = spacing_of(affine)
    axes = affine[:3, :3] / spacing
    worst = 0.0
    for along in range(3):
        for across in range(3):
            if along != across:
                step_aside = abs(float(axes[:, along] @ axes[:, across])) * spacing[along] / spacing[across]
                worst = max(worst, step_aside * (shape[along] - 1))
    return worst
