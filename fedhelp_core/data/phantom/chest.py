"""Chest-X-ray-like drawings: a thorax with two lungs, findings in them, seen by one site's scanner. Pure; numpy only.

A class is a `Finding`: how much of each sign its images show on average. An image draws its own amounts around them, so classes
overlap as they do in the clinic. A `Scanner` is what differs between hospitals. Every drawing comes with the mask of its lungs.
Shapes: H, W the image's sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.phantom.amounts import drawn_around

HEIGHT, WIDTH = 96, 112  # pixels; wider than high, so that readers must crop
SPREAD = 0.22  # standard deviation of an image's amounts around its class's

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How much of each sign a class shows, each in [0, 1]."""

    consolidation: float = 0.0
    """Cloudy white areas in a lung."""
    interstitial: float = 0.0
    """Fine lines all over both lungs."""
    effusion: float = 0.0
    """Fluid: the lower part of a lung is white."""
    nodules: float = 0.0
    """Round spots."""
    air: float = 0.0
    """Pneumothorax: the apex of a lung is black and without lines."""
    heart: float = 0.2
    """From a slender heart (0) to one that fills half the chest (1)."""
    bases: float = 0.0
    """Fibrosis: a net in the lower lungs."""
    vessels: float = 0.35
    """How full the vessels at the lungs' roots are."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What a site's images have in common."""

    exposure: float = 1.0
    contrast: float = 1.0
    """Exponent: above 1, dark parts are darker."""
    zoom: float = 1.0
    tilt: float = 0.0
    """Brightness difference between left and right."""
    noise: float = 0.02
    collimation: float = 0.0
    """Black frame, as a share of the image's half side."""
    marker: bool = False
    """A white side marker in an upper corner."""
    blur: float = 0.0
    """How soft edges are, in units of a lung's width."""


# In the order of the paediatric set's folders NORMAL, PNEUMONIA.
FINDINGS: dict[str, Finding] = {
    "normal": Finding(heart=0.3, vessels=0.45, interstitial=0.15),
    "pneumonia": Finding(consolidation=0.5, interstitial=0.35, heart=0.35, vessels=0.55, effusion=0.05),
}

# Other classes, made of the same signs: what a foundation model has seen, and a hospital's task has not.
PUBLIC_FINDINGS: dict[str, Finding] = {
    "clear": Finding(heart=0.15, vessels=0.3),
    "effusion": Finding(effusion=0.75, heart=0.4),
    "nodule": Finding(nodules=0.85),
    "pneumothorax": Finding(air=0.85),
    "cardiomegaly": Finding(heart=0.9, vessels=0.6),
    "fibrosis": Finding(bases=0.85, interstitial=0.3),
    "oedema": Finding(interstitial=0.8, vessels=0.9, effusion=0.3, heart=0.6),
    "infiltration": Finding(consolidation=0.7, bases=0.2),
}


def draw(finding: Finding, scanner: Scanner, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image (H, W) uint8, mask of the lungs (H, W) uint8 of 0 and 1); all chance comes from `rng`."""
    image, organs = draw_organs(finding, scanner, rng)
    return image, np.isin(organs, (1, 2)).astype(np.uint8)


def draw_organs(finding: Finding, scanner: Scanner, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(image (H, W) uint8, organs (H, W) uint8: 1 the lung on the image's left, 2 that on its right, 3 the heart)."""
    amount = drawn_around(finding, SPREAD, rng)
    y, x = _plane(scanner, rng)
    soft = 0.035 + 0.1 * scanner.blur
    left, right, heart = _organs(amount, y, x, soft, rng)
    lungs = np.maximum(left, right)
    image = _thorax(y, x, lungs, heart, rng)
    for brightness, opacity in _signs(amount, y, x, left, right, rng):
        image += opacity * (brightness - image)
    organs = np.select([left > 0.5, right > 0.5, heart > 0.5], [1, 2, 3], 0).astype(np.uint8)
    return _exposed(scanner, image, rng), organs


def _plane(scanner: Scanner, rng: np.random.Generator) -> tuple[Array, Array]:
    """Body coordinates (y, x) of every pixel: the trunk is about 2 high and 2.2 wide."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    y, x = (y - HEIGHT / 2 + 0.5) / (HEIGHT / 2), (x - WIDTH / 2 + 0.5) / (HEIGHT / 2)
    turn, size = rng.normal(0, 0.05), scanner.zoom * rng.uniform(0.9, 1.1)
    dy, dx = rng.uniform(-0.08, 0.08, 2)
    y, x = (y - dy) / size, (x - dx) / size
    return y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)


def _inside(distance: Array, soft: float) -> Array:
    """1 where `distance` to a border is positive, 0 where it is negative, soft between."""
    return 1 / (1 + np.exp(-np.clip(distance / soft, -30, 30)))


def _organs(amount: Finding, y: Array, x: Array, soft: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Opacities of the lung on the image's left, that on its right, and the heart."""
    height, width = rng.uniform(0.62, 0.78), rng.uniform(0.33, 0.41)
    dome = rng.uniform(0.45, 0.62)
    sides = []
    for side in (-1.0, 1.0):
        u = (side * x - 0.47) / width
        v = (y + 0.08) / height
        oval = 1 - np.abs(u) ** 2.4 - np.abs(v) ** 2.6 + 0.12 * u * v
        floor = dome + 0.04 * side - 0.22 * np.cos(1.9 * u) - y
        sides.append(np.minimum(_inside(oval, 4 * soft), _inside(floor, soft)))
    breadth = 0.24 + 0.22 * amount.heart
    heart = _inside(1 - ((x - 0.14) / breadth) ** 2 - ((y - 0.28) / (0.34 + 0.08 * amount.heart)) ** 2, 3 * soft)
    return sides[0] * (1 - heart), sides[1] * (1 - heart), heart


def _thorax(y: Array, x: Array, lungs: Array, heart: Array, rng: np.random.Generator) -> Array:
    """A healthy chest: trunk, lungs, ribs, spine, heart, collar bones."""
    trunk = _inside(1 - (np.abs(x) / 1.02) ** 4 - np.maximum(-y - 0.75, 0) ** 2 * 14, 0.08)
    image = 0.06 + 0.52 * trunk
    image += lungs * (0.20 + 0.03 * _waves(y, x, 1.5, rng) - image)
    ribs = np.maximum(np.cos(14.5 * (y - 0.28 * np.abs(x) ** 1.5) + rng.uniform(0, 6)), 0) ** 3
    image += 0.13 * ribs * trunk * (np.abs(x) < 0.95)
    image += 0.22 * np.exp(-((x / 0.11) ** 4)) * (1 + 0.25 * np.cos(18 * y)) * trunk
    image += 0.26 * heart * (0.8 - 0.5 * image)
    for side in (-1.0, 1.0):
        bone = np.exp(-(((y + 0.68 + 0.10 * side * x) / 0.035) ** 2)) * (side * x > 0.12) * (side * x < 0.85)
        image += 0.16 * bone
    return image


def _signs(amount: Finding, y: Array, x: Array, left: Array, right: Array, rng: np.random.Generator) -> list[tuple[float, Array]]:
    """(brightness, opacity per pixel) of every sign."""
    lungs = np.maximum(left, right)
    one = left if rng.uniform() < 0.5 else right
    lines = np.abs(_waves(y, x, 9.0, rng)) ** 2 * 0.5
    net = np.maximum(np.cos(24 * y + 3 * _waves(y, x, 3.0, rng)), np.cos(24 * x + 3 * _waves(y, x, 3.0, rng))) ** 4
    level = 0.62 - 0.55 * amount.effusion
    roots = np.exp(-(((np.abs(x) - 0.22) / 0.14) ** 2) - ((y + 0.05) / 0.3) ** 2) * (0.6 + 0.4 * np.abs(_waves(y, x, 6.0, rng)))
    apex = _inside(-0.38 + 0.25 * (amount.air - 0.5) - y, 0.03)
    return [
        (0.55, 0.85 * amount.vessels * lungs * np.clip(roots, 0, 1)),
        (0.62, np.clip(0.55 * amount.interstitial * lungs * lines, 0, 1)),
        (0.68, np.clip(amount.consolidation * one * _clouds(y, x, one, rng), 0, 1)),
        (0.70, 0.75 * amount.bases * lungs * np.clip(net, 0, 1) * _inside(y - 0.12, 0.08)),
        (0.72, np.clip(amount.nodules * lungs * _spots(y, x, lungs, rng), 0, 1)),
        (0.70, 0.9 * min(1.0, 3 * amount.effusion) * one * _inside(y - level - 0.25 * (np.abs(x) - 0.5) ** 2, 0.04)),
        (0.08, 0.9 * min(1.0, 2 * amount.air) * one * apex),
    ]


def _waves(y: Array, x: Array, frequency: float, rng: np.random.Generator) -> Array:
    """A smooth random field of about unit height."""
    field = np.zeros_like(y)
    for _ in range(5):
        fy, fx = rng.normal(0, frequency, 2)
        field += np.cos(fy * y + fx * x + rng.uniform(0, 2 * np.pi))
    return field / 2.5


def _clouds(y: Array, x: Array, lung: Array, rng: np.random.Generator) -> Array:
    """One to three soft patches in `lung`."""
    patches = np.zeros_like(y)
    for cy, cx in _places(y, x, lung, int(rng.integers(1, 4)), rng):
        radius = rng.uniform(0.14, 0.3)
        edge = 1 + 0.35 * _waves(y, x, 5.0, rng)
        patches = np.maximum(patches, np.exp(-(((y - cy) ** 2 + (x - cx) ** 2) * edge / radius**2)))
    return patches


def _spots(y: Array, x: Array, lungs: Array, rng: np.random.Generator) -> Array:
    """One to four round nodules."""
    spots = np.zeros_like(y)
    for cy, cx in _places(y, x, lungs, int(rng.integers(1, 5)), rng):
        spots = np.maximum(spots, np.exp(-((((y - cy) ** 2 + (x - cx) ** 2) / rng.uniform(0.05, 0.1) ** 2) ** 2)))
    return spots


def _places(y: Array, x: Array, where: Array, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """`count` points where `where` is full; the middle of the image if it is so nowhere."""
    rows, columns = np.nonzero(where > 0.8)
    if not len(rows):
        return [(0.0, 0.0)] * count
    return [(float(y[rows[i], columns[i]]), float(x[rows[i], columns[i]])) for i in rng.integers(0, len(rows), count)]


def _exposed(scanner: Scanner, image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the scanner makes of the scene."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    seen = np.clip(image, 0, 1.2) ** scanner.contrast * scanner.exposure * rng.normal(1, 0.06) * (1 + scanner.tilt * x)
    if scanner.collimation:
        seen = np.where(np.maximum(np.abs(y), np.abs(x)) > 1 - scanner.collimation * rng.uniform(0.6, 1.2), 0.02, seen)
    if scanner.marker:
        seen = np.where((np.abs(y + 0.82) < 0.07) & (np.abs(x - 0.82) < 0.05), 0.95, seen)
    seen = seen + rng.normal(0, scanner.noise, image.shape)
    drawn: NDArray[np.uint8] = (np.clip(seen, 0, 1) * 255).round().astype(np.uint8)
    return drawn


def any_scanner(rng: np.random.Generator) -> Scanner:
    """One of the many scanners that public images were taken with."""
    return Scanner(
        exposure=rng.uniform(0.75, 1.25), contrast=rng.uniform(0.75, 1.35), zoom=rng.uniform(0.85, 1.15), tilt=rng.uniform(-0.2, 0.2),
        noise=rng.uniform(0.01, 0.05), collimation=rng.choice([0.0, 0.06, 0.12]), marker=bool(rng.uniform() < 0.5), blur=rng.uniform(0, 0.6))
