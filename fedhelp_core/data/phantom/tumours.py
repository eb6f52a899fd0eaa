"""Drawn heads in four sequences with a tumour of three regions inside each other, as in BraTS. Called by demo/tasks.py and by tests.

    <folder>/<subject>/t1.nii.gz, t1c.nii.gz, t2.nii.gz, flair.nii.gz, mask.nii.gz     of a hospital: a file a sequence, on one grid
    <folder>/<hospital>.json                                                           a datalist, with a list of paths an image
    public: one file of four dimensions an image

A mask's file has 1 for necrosis, 2 for oedema and 3 for what takes up contrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.items import Item
from fedhelp_core.data.phantom.drawing import Progress, PublicMasks, Save, chance, draw_all
from fedhelp_core.data.phantom.fed_ixi import MAGNETS, save_volume
from fedhelp_core.data.phantom.head import Magnet, any_magnet, draw
from fedhelp_core.data.phantom.hospitals import items_of, write_datalists

REGIONS: Mapping[str, tuple[int, ...]] = {"whole-tumour": (1, 2, 3), "tumour-core": (1, 3), "enhancing-tumour": (3,)}
"""Region -> the values of a mask's file that lie inside it."""
SEQUENCES = ("t1", "t1c", "t2", "flair")
COUNTS: Mapping[str, tuple[int, int, int]] = {"aachen": (12, 4, 8), "bonn": (6, 4, 6), "celle": (4, 4, 6)}
"""Hospital -> subjects for training, validation and test."""
SPACING = 6.0
_RADIUS_MM = 18.0, 34.0  # of a whole tumour
_CORE, _NECROSIS = 0.7, 0.4  # shares of that radius


def write_tumours(
    folder: Path, *, seed: int, counts: Mapping[str, tuple[int, int, int]] = COUNTS, spacing: float = SPACING, progress: Progress | None = None,
) -> None:
    """Draw the hospitals below `folder`, about `spacing` mm between voxels. The same seed draws the same voxels."""
    def item(name: str) -> Item:
        first, *others = (folder / name / f"{sequence}.nii.gz" for sequence in SEQUENCES)
        return Item(first, mask=folder / name / "mask.nii.gz", sequences=tuple(others))

    hospitals = items_of(counts, item)
    jobs = [(place, one) for place, splits in enumerate(hospitals.values()) for items in splits.values() for one in items]

    def one(numbered: tuple[int, tuple[int, Item]]) -> None:
        number, (place, item) = numbered
        assert item.mask is not None
        magnet = list(MAGNETS.values())[place % len(MAGNETS)]
        sequences_XYZC, mask, affine = drawn(replace(magnet, spacing=(spacing, spacing, spacing * 1.2)), chance(seed, number))
        item.image.parent.mkdir(parents=True)
        for channel, path in enumerate((item.image, *item.sequences)):
            save_volume(np.ascontiguousarray(sequences_XYZC[..., channel]), affine, path)
        save_volume(mask, affine, item.mask)

    draw_all(one, list(enumerate(jobs)), "hospital", progress)
    write_datalists(folder, hospitals, tuple(REGIONS))


def drawn(magnet: Magnet, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """(sequences (X, Y, Z, 4) int16, mask (X, Y, Z) uint8 of 0 to 3, affine (4, 4) in mm); all chance comes from `rng`."""
    head, brain, affine = draw(magnet, rng)
    mask = _tumour(brain, affine, rng)
    t1 = head / magnet.gain
    inside, oedema, necrosis, enhancing = brain.astype(float), mask == 2, mask == 1, mask == 3
    noise = rng.normal(0, magnet.noise, (*head.shape, len(SEQUENCES)))
    tissue = np.stack([
        t1 - 0.2 * (mask > 0), t1 - 0.2 * (oedema | necrosis) + 0.5 * enhancing,
        inside * (1.1 - t1) + 0.5 * oedema + 0.6 * necrosis + 0.3 * enhancing,
        0.7 * t1 + 0.5 * oedema - 0.2 * necrosis + 0.3 * enhancing], axis=-1)
    seen = magnet.gain * np.clip(tissue + noise, 0, None)
    return seen.round().astype(np.int16), mask, affine


def _tumour(brain: NDArray[np.uint8], affine: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shells around a place in the brain, a little flattened."""
    places = np.argwhere(brain > 0)
    centre = affine[:3, :3] @ places[int(rng.integers(len(places)))] + affine[:3, 3]
    voxels = np.stack(np.meshgrid(*(np.arange(side) for side in brain.shape), indexing="ij"), axis=-1)
    away = (voxels @ affine[:3, :3].T + affine[:3, 3] - centre) / (rng.uniform(*_RADIUS_MM) * rng.uniform(0.8, 1.2, 3))
    distance = np.linalg.norm(away, axis=-1)
    found: NDArray[np.uint8] = np.select([distance < _NECROSIS, distance < _CORE, distance < 1], [1, 3, 2], 0).astype(np.uint8) * (brain > 0)
    return found


def with_sequences(path: Path, channels: int) -> Path:
    """The volume at `path` as a file of so many `channels`: itself, or beside it one that repeats it."""
    import nibabel

    load: Any = nibabel.load
    volume = load(path)
    voxels = np.asarray(volume.dataobj)
    if channels == (voxels.shape[3] if voxels.ndim == 4 else 1):
        return path
    alone = voxels[..., 0] if voxels.ndim == 4 else voxels
    changed = path.with_name(f"{channels}-{path.name}")
    save_volume(np.stack([alone] * channels, axis=-1) if channels > 1 else alone, volume.affine, changed)
    return changed


def _any_tumour(_number: int, rng: np.random.Generator) -> tuple[Save, Save]:
    sequences, mask, affine = drawn(any_magnet(rng, SPACING), rng)
    return lambda path: save_volume(sequences, affine, path), lambda path: save_volume(mask, affine, path)


PUBLIC = PublicMasks(classes=tuple(REGIONS), suffix=".nii.gz", draw=_any_tumour, answers=len(REGIONS))
