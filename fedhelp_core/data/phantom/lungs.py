"""Three drawn hospitals' chest X-rays with the masks of their lungs, as the public lung sets are published. Called by demo/tasks.py and by tests.

    <folder>/images/CHNCXR_0001_0.png        grey PNG
    <folder>/masks/CHNCXR_0001_0_mask.png    0 and 255

A name's prefix tells the hospital, as in the sets that were merged; each has its own scanner.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.phantom.chest import FINDINGS, PUBLIC_FINDINGS, Finding, Scanner, any_scanner, draw
from fedhelp_core.data.phantom.drawing import Progress, PublicMasks, Save, chance, draw_all, save

SCANNERS: Mapping[str, Scanner] = {
    "CHNCXR": Scanner(),
    "MCUCXR": Scanner(exposure=0.8, contrast=1.25, zoom=0.9, noise=0.04, collimation=0.1, marker=True),
    "JPCLN": Scanner(exposure=1.2, contrast=0.8, tilt=0.2, blur=0.5, noise=0.03),
}
COUNTS: Mapping[str, int] = {"CHNCXR": 120, "MCUCXR": 60, "JPCLN": 48}
"""Pictures of each; the real sets have 566, 138 and 247."""
_SHOWN: tuple[Finding, ...] = (*FINDINGS.values(), *PUBLIC_FINDINGS.values())


def write_lungs(folder: Path, *, seed: int, counts: Mapping[str, int] = COUNTS, progress: Progress | None = None) -> None:
    """Draw the set below `folder`. The same seed draws the same pixels."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    jobs = [(prefix, number) for prefix, count in counts.items() for number in range(count)]

    def one(job: tuple[str, int]) -> None:
        prefix, number = job
        rng = chance(seed, list(SCANNERS).index(prefix), number)
        pixels, lungs = draw(_SHOWN[number % len(_SHOWN)], SCANNERS[prefix], rng)
        name = f"{prefix}_{number + 1:04d}_{int(number % len(_SHOWN) > 0)}"
        save(pixels, folder / "images" / f"{name}.png")
        _save_mask(lungs, folder / "masks" / f"{name}_mask.png")

    draw_all(one, jobs, "hospital", progress)


def _save_mask(lungs: NDArray[np.uint8], path: Path) -> None:
    save((lungs * 255).astype(np.uint8), path)


def _any_chest(number: int, rng: np.random.Generator) -> tuple[Save, Save]:
    pixels, lungs = draw(_SHOWN[number % len(_SHOWN)], any_scanner(rng), rng)
    return lambda path: save(pixels, path), lambda path: _save_mask(lungs, path)


PUBLIC = PublicMasks(classes=("background", "lung"), suffix=".png", draw=_any_chest)
