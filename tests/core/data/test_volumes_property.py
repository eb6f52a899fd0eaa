"""Random volumes written in every format: what the network sees is what it would see of the truth, whatever the file's axes, types and order.

The truth is a volume whose axes point to the right, front and top. It is written with random spacing, turned and mirrored axes, an oblique position,
a random type, slope and intercept, its slices in random order. What is compared is the cube that training gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.items import Item
from fedhelp_core.data.volumes import VolumeReader
from tests.core.data.writers import Change, raw, write_multiframe, write_nifti, write_series

pytestmark = pytest.mark.slow  # MONAI takes seconds to import
SPACING = 4.0
BRAINS = TaskConfig.model_validate({
    "name": "brain-segmentation", "image_size": 24, "volume": {"spacing": SPACING, "patch_size": 16, "window_size": 16}})
FORMATS = ("nifti", "nifti-gz", "nifti-2", "dicom", "multiframe")
_INTEGERS = {"nifti": "u1 i1 u2 i2 u4 i4 u8 i8 f4 f8", "dicom": "u1 i1 u2 i2 u4 i4"}


@dataclass(frozen=True)
class Case:
    """A truth, and how it is to be stored."""

    rng: np.random.Generator
    voxels: NDArray[np.float64]
    """(right, front, top), what the scanner measured."""
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]
    """Right, front and top to mm, perhaps turned a little."""
    turn: tuple[int, int, int]
    """Which of the truth's axes each stored axis is."""
    mirrored: tuple[int, ...]
    """Stored axes that run the other way."""

    def stored(self, voxels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.flip(voxels.transpose(self.turn), self.mirrored))

    def stored_affine(self) -> NDArray[np.float64]:
        """That of the stored axes."""
        change = np.zeros((4, 4))
        change[3, 3] = 1
        for axis, source in enumerate(self.turn):
            last = self.voxels.shape[source] - 1
            change[source, axis] = -1 if axis in self.mirrored else 1
            change[source, 3] = last if axis in self.mirrored else 0
        return self.affine @ change


def drawn(seed: int) -> Case:
    rng = np.random.default_rng([7, seed])
    spacing = rng.uniform(1.5, 6.0, 3)
    shape = tuple(int(side) for side in rng.integers(12, 22, 3))
    places = np.meshgrid(*((np.arange(side) - (side - 1) / 2) * step for side, step in zip(shape, spacing, strict=True)), indexing="ij")
    centre, widths = rng.uniform(-8, 8, 3), rng.uniform(9, 20, 3)
    distance = sum(((place - middle) / width) ** 2 for place, middle, width in zip(places, centre, widths, strict=True))
    voxels = np.exp(-distance) + 0.3 * (places[0] > 5) + 0.2 * (places[1] > 9) + 0.1 * (places[2] > 2)  # no symmetry
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng.uniform(-0.3, 0.3, 3)) * spacing
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    turn = tuple(int(axis) for axis in rng.permutation(3))
    mirrored = tuple(axis for axis in range(3) if rng.random() < 0.5)
    return Case(rng, voxels, (distance < 1).astype(np.uint8), affine, turn, mirrored)  # type: ignore[arg-type]


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        one = np.eye(3)
        others = [other for other in range(3) if other != axis]
        one[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turned = turned @ one
    return turned


def as_integers(case: Case, types: str) -> tuple[NDArray[Any], float, float]:
    """Stored values, slope and intercept that mean `case.voxels` (times 1000) within half a step."""
    dtype = np.dtype(case.rng.choice(types.split()))
    low, high = (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    low, high = max(low, -30_000.0), min(high, 30_000.0)
    measured = case.voxels * 1000
    slope = float(f"{(measured.max() - measured.min()) / (high - low):.8g}")
    intercept = float(f"{measured.min() - low * slope:.8g}")
    values = (measured - intercept) / slope
    return (values if dtype.kind == "f" else values.round()).astype(dtype), slope, intercept


def write(case: Case, kind: str, folder: Path) -> Item:
    affine, mask = case.stored_affine(), case.stored(case.mask)
    values, slope, intercept = as_integers(case, _INTEGERS["nifti" if kind.startswith("nifti") else "dicom"])
    stored = case.stored(values)
    if kind.startswith("nifti"):
        name = {"nifti": "a.nii", "nifti-gz": "a.nii.gz", "nifti-2": "a.nii"}[kind]
        version, big = (2 if kind == "nifti-2" else 1), bool(case.rng.random() < 0.3)
        image = write_nifti(folder / "image" / name, stored, affine, slope=slope, intercept=intercept, version=version, big_endian=big)
        return Item(image, mask=write_nifti(folder / "mask" / name, mask, affine, version=version, big_endian=big))
    order = [int(z) for z in case.rng.permutation(stored.shape[2])]
    if kind == "multiframe":
        image = write_multiframe(
            folder / "image" / "a.dcm", stored, affine, order=order, slope=slope, intercept=intercept, shared=bool(case.rng.random() < 0.5))
        return Item(image, mask=write_multiframe(folder / "mask" / "a.dcm", mask, affine))
    write_series(folder / "image", stored, affine, order=order, change=_scaled(slope, intercept))
    write_series(folder / "mask", mask, affine)
    return Item(folder / "image", mask=folder / "mask")


def _scaled(slope: float, intercept: float) -> Change:
    def change(one: Any, _z: int) -> None:
        raw(one, "RescaleSlope", f"{slope:.12g}")
        raw(one, "RescaleIntercept", f"{intercept:.12g}")

    return change


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(12))
def test_the_network_sees_the_truth(seed: int, kind: str, tmp_path: Path) -> None:
    case = drawn(seed)
    reader = VolumeReader(BRAINS)
    found = reader.read(write(case, kind, tmp_path))
    assert found.problem == ""
    assert found.image_CHW is not None
    truth = reader.prepared((case.voxels * 1000).astype(np.float32), case.affine, tmp_path)
    mask = reader.prepared_target((case.mask != 0).astype(np.uint8)[None], case.affine)
    assert np.abs(found.image_CHW.astype(int) - truth).max() <= 3  # 8-bit files have 256 steps, as the network's cubes have
    assert (np.asarray(found.target) != mask).mean() < 0.002       # a nearest voxel may be another one where two are as near


@pytest.mark.parametrize("seed", range(8))
def test_the_cube_lies_where_the_truth_lies(seed: int) -> None:
    """What `prepared` itself makes of an affine: a ball's centre is where mm say that it is."""
    rng = np.random.default_rng([8, seed])
    spacing, shape = rng.uniform(1.5, 5.0, 3), (24, 22, 20)
    places = np.stack(np.meshgrid(*(np.arange(side) * step for side, step in zip(shape, spacing, strict=True)), indexing="ij"), axis=-1)
    middle = (np.array(shape) - 1) * spacing / 2
    centre = middle + rng.uniform(-6, 6, 3)
    voxels = np.exp(-(((places - centre) / 9) ** 2).sum(axis=-1)).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    turned = voxels.transpose(2, 0, 1)[::-1]
    stored_affine = affine @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, shape[2] - 1], [0, 0, 0, 1]], float)
    cube = VolumeReader(BRAINS).prepared(np.ascontiguousarray(turned), stored_affine, Path("a"))[0].astype(float)
    cube[cube < 60] = 0
    grid = np.meshgrid(*[np.arange(24)] * 3, indexing="ij")
    found = np.array([(axis * cube).sum() / cube.sum() for axis in grid])
    expected = 11.5 + (centre - middle) / SPACING
    assert np.abs(found - expected).max() < 0.75  # padding and cropping round to whole voxels
