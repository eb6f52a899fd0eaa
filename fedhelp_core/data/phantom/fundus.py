"""Fundus-like drawings in five grades of retinopathy: hospitals and a public set. Pure; numpy only. Called by demo/tasks.py and by tests.

    <folder>/images/*.png, <folder>/<hospital>.json     colour, and a datalist

A grade is how many lesions of each kind its images show. A camera is what differs between hospitals. Shapes: S the side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.items import Item
from fedhelp_core.data.phantom.drawing import Progress, Public, chance, draw_all, save
from fedhelp_core.data.phantom.hospitals import items_of, write_datalists

SIDE = 96  # pixels
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """How many lesions an image of the grade shows on average."""

    dots: float = 0.0
    """Microaneurysms: small, dark red."""
    blots: float = 0.0
    """Haemorrhages: larger, dark red."""
    exudates: float = 0.0
    """Small, yellow, sharp."""
    new_vessels: float = 0.0
    """Fine tangled vessels at the disc."""
    cup: float = 0.3
    """How much of the optic disc is hollow."""


GRADES: Mapping[str, Grade] = {
    "none": Grade(), "mild": Grade(dots=6), "moderate": Grade(dots=10, blots=3, exudates=5), "severe": Grade(dots=14, blots=10, exudates=9),
    "proliferative": Grade(dots=10, blots=6, exudates=5, new_vessels=5)}
_PUBLIC: Mapping[str, Grade] = {
    "healthy": Grade(), "glaucoma": Grade(cup=0.85), "drusen": Grade(exudates=16), "bleeding": Grade(blots=9), "tangles": Grade(new_vessels=6)}
COUNTS: Mapping[str, tuple[int, int, int]] = {"athens": (90, 20, 60), "basel": (50, 15, 50), "cork": (25, 15, 40)}
"""Hospital -> images for training, validation and test, of all grades alike."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What a site's images have in common."""

    tint: tuple[float, float, float] = (0.75, 0.36, 0.16)
    vignette: float = 0.3
    noise: float = 0.02
    zoom: float = 1.0


CAMERAS = (Camera(), Camera(tint=(0.62, 0.3, 0.22), vignette=0.5, noise=0.035), Camera(tint=(0.85, 0.45, 0.2), zoom=1.15, noise=0.03))


def draw(grade: Grade, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image (S, S, 3); all chance comes from `rng`."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j] / camera.zoom
    seen = np.hypot(y, x) < 0.92
    image = np.ones((SIDE, SIDE, 3)) * camera.tint * (1 - camera.vignette * (y**2 + x**2)[..., None])
    disc_y, disc_x = rng.normal(0, 0.06), rng.choice((-0.45, 0.45)) + rng.normal(0, 0.04)
    _paint(image, _vessels(y, x, disc_y, disc_x, rng), (0.42, 0.1, 0.07), 0.75)
    away = np.hypot(y - disc_y, x - disc_x)
    _paint(image, away < 0.15, (0.95, 0.8, 0.5), 0.85)
    _paint(image, away < 0.15 * min(0.95, max(0.1, grade.cup + rng.normal(0, 0.05))), (1.0, 0.95, 0.8), 0.9)
    for mean, radius, colour in ((grade.dots, 0.022, (0.4, 0.08, 0.06)), (grade.blots, 0.06, (0.36, 0.06, 0.05)),
                                 (grade.exudates, 0.032, (0.98, 0.9, 0.45))):
        for _ in range(int(rng.poisson(mean))):
            far, turn = 0.75 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
            _paint(image, np.hypot(y - far * np.sin(turn), x - far * np.cos(turn)) < radius * rng.uniform(0.8, 1.4), colour, 0.8)
    for _ in range(int(rng.poisson(grade.new_vessels))):
        wave = disc_y + 0.1 * np.sin(rng.uniform(20, 40) * (x - disc_x) + rng.uniform(0, 6)) + rng.normal(0, 0.08)
        _paint(image, (np.abs(y - wave) < 0.015) & (np.abs(x - disc_x) < 0.3), (0.5, 0.06, 0.06), 0.9)
    image = np.where(seen[..., None], image + rng.normal(0, camera.noise, image.shape), 0.02) * rng.normal(1, 0.05)
    pixels: NDArray[np.uint8] = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return pixels


def write_fundus(folder: Path, *, seed: int, counts: Mapping[str, tuple[int, int, int]] = COUNTS, progress: Progress | None = None) -> None:
    """Draw the hospitals below `folder`. The same seed draws the same pixels."""
    (folder / "images").mkdir(parents=True)
    hospitals = items_of(counts, lambda name: Item(folder / "images" / f"{name}.png"))
    hospitals = {
        hospital: {split: tuple(replace(item, label=number % len(GRADES)) for number, item in enumerate(items)) for split, items in splits.items()}
        for hospital, splits in hospitals.items()}
    jobs = [(place, item) for place, splits in enumerate(hospitals.values()) for items in splits.values() for item in items]

    def one(numbered: tuple[int, tuple[int, Item]]) -> None:
        number, (place, item) = numbered
        save(draw(list(GRADES.values())[item.label], CAMERAS[place % len(CAMERAS)], chance(seed, number)), item.image)

    draw_all(one, list(enumerate(jobs)), "hospital", progress)
    write_datalists(folder, hospitals, tuple(GRADES))


def _paint(image: Array, where: NDArray[np.bool_], colour: tuple[float, float, float], opacity: float) -> None:
    image[where] += opacity * (np.array(colour) - image[where])


def _vessels(y: Array, x: Array, disc_y: float, disc_x: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Arcs from the disc over the retina, thinner the farther."""
    found = np.zeros(y.shape, bool)
    for bend in (-0.9, -0.45, 0.45, 0.9):
        along = np.abs(x - disc_x)
        arc = disc_y + bend * np.sqrt(along) + 0.04 * np.sin(12 * along + rng.uniform(0, 6))
        found |= (np.abs(y - arc) < 0.03 * (1 - 0.4 * along)) & (np.hypot(y, x) < 0.9)
    return found


def _any_camera(rng: np.random.Generator) -> Camera:
    red = rng.uniform(0.6, 0.9)
    return Camera(
        tint=(red, red * rng.uniform(0.42, 0.55), red * rng.uniform(0.2, 0.32)), vignette=rng.uniform(0.2, 0.5), noise=rng.uniform(0.01, 0.04),
        zoom=rng.uniform(0.95, 1.2))


PUBLIC = Public(classes=tuple(_PUBLIC), draw=lambda number, rng: draw(list(_PUBLIC.values())[number % len(_PUBLIC)], _any_camera(rng), rng))
