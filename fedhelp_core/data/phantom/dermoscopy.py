"""Dermoscopy-like drawings: a lesion made of graded structures, seen through one site's camera. Pure; numpy only.

A class is a `Lesion`: how much of each structure its images show on average. An image draws its own amounts around them,
so classes overlap as they do in the clinic. A `Camera` is what differs between hospitals. Colours alone decide nothing:
white balance and exposure differ more between sites than between classes. Shapes: H, W the image's sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.phantom.amounts import drawn_around

HEIGHT, WIDTH = 64, 80  # pixels; wider than high, as cameras are, so that readers must crop
SPREAD = 0.20  # standard deviation of an image's amounts around its class's

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """How much of each structure a class shows, each in [0, 1]."""

    border: float = 0.1
    """Irregular outline."""
    asymmetry: float = 0.1
    network: float = 0.0
    """Pigment network: a dark grid."""
    globules: float = 0.0
    """Dark dots."""
    streaks: float = 0.0
    """Radial lines at the rim."""
    vessels: float = 0.0
    """Red branching lines."""
    scale: float = 0.0
    """White speckle on the surface."""
    cysts: float = 0.0
    """Bright dots."""
    scar: float = 0.0
    """White patch in the centre."""
    lacunae: float = 0.0
    """Red to purple lakes."""
    veil: float = 0.0
    """Blue-grey area."""
    redness: float = 0.2
    """From brown (0) to pink (1)."""
    darkness: float = 0.5
    variegation: float = 0.2
    """Several shades in one lesion."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What a site's images have in common."""

    red: float = 1.0
    """Gain of the red channel; green is 1."""
    blue: float = 1.0
    exposure: float = 1.0
    gamma: float = 1.0
    skin: tuple[float, float, float] = (0.87, 0.69, 0.60)
    size: float = 0.55
    """Mean radius of a lesion, in half image heights."""
    hair: float = 0.0
    """Mean number of hairs."""
    vignette: float = 0.0
    """How dark the corners are, 0 to 1."""
    tilt: float = 0.0
    """Light from one side: difference between left and right."""
    noise: float = 0.01


# In the order of Fed-ISIC2019's targets.
LESIONS: dict[str, Lesion] = {
    "melanoma": Lesion(border=.85, asymmetry=.85, network=.45, globules=.35, streaks=.7, veil=.75, redness=.2, darkness=.75, variegation=.85),
    "nevus": Lesion(border=.1, asymmetry=.1, network=.75, globules=.45, redness=.1, darkness=.5, variegation=.15),
    "basal-cell-carcinoma": Lesion(border=.45, asymmetry=.5, globules=.25, vessels=.9, veil=.45, redness=.65, darkness=.3, variegation=.4),
    "actinic-keratosis": Lesion(border=.6, asymmetry=.35, network=.3, scale=.7, vessels=.15, redness=.8, darkness=.2, variegation=.3),
    "benign-keratosis": Lesion(border=.3, asymmetry=.4, globules=.2, cysts=.9, redness=.15, darkness=.55, variegation=.4),
    "dermatofibroma": Lesion(border=.15, asymmetry=.15, network=.4, scar=.9, redness=.4, darkness=.35, variegation=.2),
    "vascular-lesion": Lesion(border=.3, asymmetry=.25, lacunae=.9, veil=.25, redness=.75, darkness=.5, variegation=.4),
    "squamous-cell-carcinoma": Lesion(border=.5, asymmetry=.5, vessels=.45, scale=.75, scar=.5, redness=.8, darkness=.35, variegation=.55),
}

# Other classes, made of the same structures: what a foundation model has seen, and a hospital's task has not.
PUBLIC_LESIONS: dict[str, Lesion] = {
    "blue-nevus": Lesion(border=.1, asymmetry=.1, veil=.9, darkness=.7),
    "spitz-nevus": Lesion(border=.2, asymmetry=.1, globules=.5, streaks=.9, darkness=.7),
    "lentigo": Lesion(border=.8, asymmetry=.4, network=.8, darkness=.35),
    "halo-nevus": Lesion(border=.1, asymmetry=.1, globules=.6, scar=.6, darkness=.4),
    "congenital-nevus": Lesion(border=.4, asymmetry=.4, globules=.95, darkness=.6, variegation=.4),
    "psoriasis": Lesion(border=.6, asymmetry=.2, scale=.8, globules=.3, redness=.9, darkness=.3),
    "pyogenic-granuloma": Lesion(border=.15, asymmetry=.1, lacunae=.5, scale=.5, redness=.9, darkness=.5),
    "clear-cell-acanthoma": Lesion(border=.2, asymmetry=.15, vessels=.8, globules=.4, redness=.7, darkness=.3),
    "sebaceous-hyperplasia": Lesion(border=.3, asymmetry=.2, cysts=.7, vessels=.6, redness=.4, darkness=.25),
    "angiokeratoma": Lesion(border=.4, asymmetry=.3, lacunae=.8, scale=.6, redness=.6, darkness=.7),
    "porokeratosis": Lesion(border=.7, asymmetry=.3, scar=.7, scale=.4, redness=.4, darkness=.3),
    "recurrent-nevus": Lesion(border=.8, asymmetry=.8, scar=.6, network=.5, streaks=.4, darkness=.5, variegation=.6),
}


def draw(lesion: Lesion, camera: Camera, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image (HEIGHT, WIDTH, 3) uint8 of `lesion` through `camera`; all chance comes from `rng`."""
    amount = drawn_around(lesion, SPREAD, rng)
    y, x = _plane(camera, rng)
    inside, depth, angle = _outline(amount, y, x, rng)
    skin = np.array(camera.skin) * rng.normal(1, 0.03, 3)
    image = _coloured(amount, skin, inside, y, x, rng)
    for colour, opacity in _structures(amount, y, x, inside, depth, angle, rng):
        image += opacity[..., None] * (np.array(colour) - image)
    _draw_hair(image, camera, rng)
    return _through(camera, image, rng)


def _plane(camera: Camera, rng: np.random.Generator) -> tuple[Array, Array]:
    """Lesion coordinates (y, x) of every pixel: shifted, turned and scaled so that the lesion's mean radius is 1."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    y, x = (y - HEIGHT / 2 + 0.5) / (HEIGHT / 2), (x - WIDTH / 2 + 0.5) / (HEIGHT / 2)
    dy, dx = rng.uniform(-0.15, 0.15, 2)
    turn, size = rng.uniform(0, 2 * np.pi), camera.size * rng.uniform(0.85, 1.2)
    y, x = (y - dy) / size, (x - dx) / size
    return y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)


def _outline(amount: Lesion, y: Array, x: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """(opacity of the lesion, depth below its rim in lesion radii, angle) of every pixel."""
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    rim = 1 + 0.35 * amount.asymmetry * np.cos(angle) + 0.15 * amount.asymmetry * np.cos(2 * angle + 1)
    for k in range(3, 9):
        rim += amount.border * rng.normal(0, 0.28 / k**0.5) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    depth = np.maximum(rim, 0.3) - radius
    return 1 / (1 + np.exp(-np.clip(depth / 0.07, -30, 30))), depth, angle


def _coloured(amount: Lesion, skin: Array, inside: Array, y: Array, x: Array, rng: np.random.Generator) -> Array:
    """Skin with the lesion's ground colour on it."""
    brown, pink = np.array([0.48, 0.30, 0.20]), np.array([0.80, 0.45, 0.43])
    ground = (1 - amount.redness) * brown + amount.redness * pink
    strength = 0.35 + 0.55 * amount.darkness
    shade = 1 + 0.45 * amount.variegation * _waves(y, x, rng)[..., None]
    lesion = skin + strength * (ground * shade - skin)
    return skin + inside[..., None] * (lesion - skin)


def _structures(
    amount: Lesion, y: Array, x: Array, inside: Array, depth: Array, angle: Array, rng: np.random.Generator,
) -> list[tuple[tuple[float, float, float], Array]]:
    """(colour, opacity per pixel) of every structure, from the deepest to the surface."""
    radius = np.hypot(y, x)
    warp_y, warp_x = y + 0.12 * _waves(y, x, rng), x + 0.12 * _waves(y, x, rng)
    grid = np.maximum(np.cos(9.5 * warp_y), np.cos(9.5 * warp_x)) ** 4
    rays = np.maximum(np.cos(round(rng.uniform(12, 18)) * angle), 0) ** 2 * np.exp(-((depth - 0.05) / 0.16) ** 2)
    vein_y, vein_x = y + 0.3 * _waves(y, x, rng), x + 0.3 * _waves(y, x, rng)
    veins = np.maximum(np.exp(-((np.sin(3.2 * vein_y)) / 0.22) ** 2), np.exp(-((np.sin(2.6 * vein_x + vein_y)) / 0.2) ** 2))
    return [
        ((0.42, 0.47, 0.62), amount.veil * 0.85 * inside * _dots(amount.veil, y, x, 2, 0.40, rng)),
        ((0.55, 0.10, 0.22), amount.lacunae * 0.9 * inside * _dots(amount.lacunae, y, x, 7, 0.20, rng)),
        ((0.22, 0.13, 0.10), amount.network * 0.75 * inside * grid),
        ((0.20, 0.12, 0.10), amount.globules * 0.85 * inside * _dots(amount.globules, y, x, 12, 0.085, rng)),
        ((0.18, 0.11, 0.10), amount.streaks * 0.9 * rays),
        ((0.72, 0.14, 0.16), amount.vessels * 0.8 * inside * veins),
        ((0.93, 0.86, 0.80), amount.scar * 0.85 * np.exp(-((radius / 0.38) ** 4))),
        ((0.97, 0.93, 0.80), amount.cysts * 0.9 * inside * _dots(amount.cysts, y, x, 9, 0.075, rng)),
        ((0.95, 0.92, 0.90), amount.scale * 0.8 * inside * np.maximum(_waves(3.0 * y, 3.0 * x, rng) - 0.25, 0)),
    ]


def _waves(y: Array, x: Array, rng: np.random.Generator) -> Array:
    """A smooth random field of about unit height."""
    field = np.zeros_like(y)
    for _ in range(4):
        fy, fx = rng.normal(0, 2.2, 2)
        field += np.cos(fy * y + fx * x + rng.uniform(0, 2 * np.pi))
    return field / 2


def _dots(amount: float, y: Array, x: Array, count: int, size: float, rng: np.random.Generator) -> Array:
    """Soft round spots within the lesion, of about `size` lesion radii; none where `amount` is 0, which takes the same chance from `rng`."""
    radius, angle = 0.8 * np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
    sizes = size * rng.uniform(0.75, 1.3, count)
    if amount == 0:
        return np.zeros_like(y)
    centre_y, centre_x = radius * np.sin(angle), radius * np.cos(angle)
    square_KHW = (y - centre_y[:, None, None]) ** 2 + (x - centre_x[:, None, None]) ** 2
    spots: Array = np.exp(-((square_KHW / sizes[:, None, None] ** 2) ** 2)).max(axis=0)
    return spots


def _draw_hair(image: Array, camera: Camera, rng: np.random.Generator) -> None:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    for _ in range(rng.poisson(camera.hair)):
        turn, offset, bend = rng.uniform(0, np.pi), rng.uniform(-40, 40), rng.uniform(-0.006, 0.006)
        u = (x - WIDTH / 2) * np.cos(turn) + (y - HEIGHT / 2) * np.sin(turn)
        v = (y - HEIGHT / 2) * np.cos(turn) - (x - WIDTH / 2) * np.sin(turn)
        opacity = 0.8 * np.exp(-(((v - offset - bend * u**2) / 0.9) ** 2))
        image += opacity[..., None] * (np.array([0.13, 0.09, 0.07]) - image)


def _through(camera: Camera, image: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the camera makes of the scene."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    light = camera.exposure * rng.normal(1, 0.05) * (1 - camera.vignette * ((y**2 + x**2) / 2) ** 2) * (1 + camera.tilt * x)
    seen = image * np.array([camera.red, 1.0, camera.blue]) * light[..., None]
    seen = np.clip(seen, 0, 1) ** camera.gamma + rng.normal(0, camera.noise, image.shape)
    drawn: NDArray[np.uint8] = (np.clip(seen, 0, 1) * 255).round().astype(np.uint8)
    return drawn
