"""Three drawn hospitals in Fed-IXI's own layout. Called by demo/tasks.py and by tests.

    <folder>/subjects/IXI002-Guys-0702/T1/IXI002-Guys-0702_image.nii.gz       int16
    <folder>/subjects/IXI002-Guys-0702/label/IXI002-Guys-0702_label.nii.gz    0 and 1
    <folder>/metadata_tiny.csv                                                Patient ID,Manufacturer,Split

Subjects' numbers run through all hospitals, as in the set; each hospital has its own scanner, spacing and orientation.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.fed_ixi import PATIENT, SPLIT
from fedhelp_core.data.phantom.drawing import Progress, PublicMasks, Save, chance, draw_all
from fedhelp_core.data.phantom.head import Magnet, any_magnet, draw

MAGNETS: Mapping[str, Magnet] = {
    "Guys": Magnet(),
    "HH": Magnet(axes="PSR", gain=1100.0, grey_white=0.1, shading=-0.2, noise=0.05),
    "IOP": Magnet(axes="LAS", gain=220.0, grey_white=0.06, shading=0.3, noise=0.07),
}
_ANISOTROPY = {"Guys": (1.0, 1.0, 1.2), "HH": (1.0, 1.0, 1.3), "IOP": (0.9, 0.9, 1.5)}
COUNTS: Mapping[str, tuple[int, int]] = {"Guys": (16, 10), "HH": (8, 10), "IOP": (4, 10)}
"""Hospital -> training and test subjects; the set has 249 and 79, 145 and 39, 58 and 16 or so."""
SPACING = 5.0


def write_fed_ixi(
    folder: Path, *, seed: int, counts: Mapping[str, tuple[int, int]] = COUNTS, spacing: float = SPACING, progress: Progress | None = None,
) -> None:
    """Draw the set below `folder`, about `spacing` mm between voxels. The same seed draws the same voxels."""
    subjects = [(hospital, split) for hospital, per_split in counts.items() for split, n in zip(("train", "test"), per_split, strict=True)
                for _ in range(n)]
    jobs = [(2 + number, hospital) for number, (hospital, _) in enumerate(subjects)]

    def one(job: tuple[int, str]) -> None:
        number, hospital = job
        steps = tuple(spacing * factor for factor in _ANISOTROPY[hospital])
        volume, mask, affine = draw(replace(MAGNETS[hospital], spacing=(steps[0], steps[1], steps[2])), chance(seed, number))
        subject = folder / "subjects" / f"IXI{number:03d}-{hospital}-{700 + number:04d}"
        for part, kind, voxels in (("T1", "image", volume), ("label", "label", mask)):
            (subject / part).mkdir(parents=True)
            save_volume(voxels, affine, subject / part / f"{subject.name}_{kind}.nii.gz")

    draw_all(one, jobs, "hospital", progress)
    with (folder / "metadata_tiny.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((PATIENT, "Manufacturer", SPLIT))
        writer.writerows((number, list(counts).index(hospital), split) for (number, hospital), (_, split) in zip(jobs, subjects, strict=True))


def save_volume(voxels: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    """A NIfTI file whose qform and sform say `affine`; the same voxels, the same bytes."""
    import nibabel

    volume: Any = nibabel.Nifti1Image
    image = volume(voxels, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.to_filename(path)


def _any_head(_number: int, rng: np.random.Generator) -> tuple[Save, Save]:
    volume, mask, affine = draw(any_magnet(rng, SPACING), rng)
    return lambda path: save_volume(volume, affine, path), lambda path: save_volume(mask, affine, path)


PUBLIC = PublicMasks(classes=("background", "brain"), suffix=".nii.gz", draw=_any_head)
