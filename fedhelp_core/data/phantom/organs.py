"""Drawn chest X-rays with a mask of both lungs and the heart, a number an organ: hospitals and a public set. Called by demo/tasks.py and by tests.

    <folder>/images/*.png, <folder>/masks/*.png     grey; 0 background, then the organs' numbers
    <folder>/<hospital>.json                        a datalist
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedhelp_core.data.items import Item
from fedhelp_core.data.phantom.chest import FINDINGS, PUBLIC_FINDINGS, any_scanner, draw_organs
from fedhelp_core.data.phantom.chest_xray import SCANNERS
from fedhelp_core.data.phantom.drawing import Progress, PublicMasks, Save, chance, draw_all, save
from fedhelp_core.data.phantom.hospitals import items_of, write_datalists

CLASSES = ("background", "right-lung", "left-lung", "heart")
"""A patient's right lung is on the image's left."""
COUNTS: Mapping[str, tuple[int, int, int]] = {"north": (40, 8, 30), "south": (20, 6, 20), "west": (10, 6, 20)}
"""Hospital -> pictures for training, validation and test."""
_SHOWN = (*FINDINGS.values(), *PUBLIC_FINDINGS.values())


def write_organs(folder: Path, *, seed: int, counts: Mapping[str, tuple[int, int, int]] = COUNTS, progress: Progress | None = None) -> None:
    """Draw the hospitals below `folder`. The same seed draws the same pixels."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    hospitals = items_of(counts, lambda name: Item(folder / "images" / f"{name}.png", mask=folder / "masks" / f"{name}.png"))
    jobs = [(place, item) for place, splits in enumerate(hospitals.values()) for items in splits.values() for item in items]

    def one(numbered: tuple[int, tuple[int, Item]]) -> None:
        number, (place, item) = numbered
        assert item.mask is not None
        pixels, organs = draw_organs(_SHOWN[number % len(_SHOWN)], SCANNERS[place % len(SCANNERS)], chance(seed, number))
        save(pixels, item.image)
        save(organs, item.mask)

    draw_all(one, list(enumerate(jobs)), "hospital", progress)
    write_datalists(folder, hospitals, CLASSES)


def _any_chest(number: int, rng: np.random.Generator) -> tuple[Save, Save]:
    pixels, organs = draw_organs(_SHOWN[number % len(_SHOWN)], any_scanner(rng), rng)
    return lambda path: save(pixels, path), lambda path: save(organs, path)


PUBLIC = PublicMasks(classes=CLASSES, suffix=".png", draw=_any_chest, answers=len(CLASSES))
