"""T1-like drawings of heads, each with the mask of its brain, as one site's scanner sees them. Pure; numpy only.

The scene is drawn in millimetres, then sampled at the voxels of the scanner's own grid: spacing and orientation differ between
hospitals as they do in Fed-IXI. Shapes: X, Y, Z the file's axes, whatever they point to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_FIELD_MM = 200.0  # side of what is seen: a head and some air


@dataclass(frozen=True, kw_only=True)
class Magnet:
    """What a site's volumes have in common."""

    spacing: tuple[float, float, float] = (5.0, 5.0, 5.0)
    """mm between voxels along the file's axes."""
    axes: str = "RAS"
    """Where the file's axes point: R or L, A or P, S or I, in any order."""
    gain: float = 400.0
    """Scanner units of the brightest tissue: they mean something else at every site."""
    grey_white: float = 0.18
    """Contrast of grey to white matter."""
    shading: float = 0.15
    """How much brightness changes across the field."""
    noise: float = 0.03


def draw(magnet: Magnet, rng: np.random.Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8], Array]:
    """(volume (X, Y, Z) int16, mask of the brain (X, Y, Z) uint8 of 0 and 1, affine (4, 4) in mm); all chance comes from `rng`."""
    affine, shape = grid_of(magnet)
    right, anterior, superior = _body(affine, shape, rng)
    size = rng.normal(1, 0.05)
    radius = np.sqrt((right / (70 * size)) ** 2 + (anterior / (86 * size)) ** 2 + ((superior - 4) / (78 * size)) ** 2)
    folds = 0.03 * _waves((right, anterior, superior), 0.05, rng)
    cortex = np.sqrt((right / (58 * size)) ** 2 + ((anterior + 2) / (73 * size)) ** 2 + ((superior - 10) / (60 * size)) ** 2) + folds
    neck = (np.hypot(right / 48, (anterior + 12) / 52) < 1) & (superior < -50)
    brain = cortex < 1
    image = 0.02 + 0.55 * (neck | (radius < 1)) * (1 + 0.2 * _waves((right, anterior, superior), 0.03, rng))
    image = np.where((radius < 0.95) & (radius > 0.86) & ~neck, 0.08, image)  # skull
    image = np.where((radius < 0.86) & ~brain & ~neck & (superior > -48), 0.2, image)  # fluid
    image = np.where(brain, 0.6 + magnet.grey_white * (cortex < 0.78) + 0.05 * _waves((right, anterior, superior), 0.09, rng), image)
    image = np.where(np.hypot(right / 14, np.hypot((anterior - 10) / 24, (superior - 12) / 9)) < 1, 0.22, image)  # ventricles
    image *= 1 + magnet.shading * (0.6 * right + 0.8 * superior) / (_FIELD_MM / 2)
    seen = magnet.gain * rng.normal(1, 0.1) * np.clip(image + rng.normal(0, magnet.noise, shape), 0, None)
    return seen.round().astype(np.int16), brain.astype(np.uint8), affine


def grid_of(magnet: Magnet) -> tuple[Array, tuple[int, int, int]]:
    """Affine (4, 4), from voxel to mm in RAS, and the shape of a file that shows the whole field."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    shape = [round(_FIELD_MM / step) for step in magnet.spacing]
    for axis, (letter, step) in enumerate(zip(magnet.axes, magnet.spacing, strict=True)):
        row = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter]
        sign = 1 if letter in "RAS" else -1
        affine[row, axis] = sign * step
        affine[row, 3] = -sign * step * (shape[axis] - 1) / 2
    return affine, (shape[0], shape[1], shape[2])


def any_magnet(rng: np.random.Generator, spacing: float) -> Magnet:
    """One of the many scanners that public volumes were taken with."""
    return Magnet(
        spacing=(spacing, spacing, spacing), gain=rng.uniform(200, 1500), grey_white=rng.uniform(0.05, 0.25), shading=rng.uniform(-0.25, 0.25),
        noise=rng.uniform(0.01, 0.06))


def _body(affine: Array, shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Body coordinates (right, anterior, superior) in mm of every voxel: the head lies a little turned and shifted."""
    voxels = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1).astype(np.float64)
    place = voxels @ affine[:3, :3].T + affine[:3, 3] - rng.normal(0, 4, 3)
    nod = rng.normal(0, 0.08)
    right, anterior, superior = np.moveaxis(place, -1, 0)
    return right, anterior * np.cos(nod) - superior * np.sin(nod), anterior * np.sin(nod) + superior * np.cos(nod)


def _waves(place: tuple[Array, Array, Array], frequency: float, rng: np.random.Generator) -> Array:
    """A smooth random field of about unit height; `frequency` in waves of 2π a mm."""
    field = np.zeros_like(place[0])
    for _ in range(4):
        steps = rng.normal(0, frequency, 3)
        field += np.cos(sum(step * axis for step, axis in zip(steps, place, strict=True)) + rng.uniform(0, 2 * np.pi))
    return field / 2
