"""Six drawn hospitals in Fed-ISIC2019's own layout, and a drawn public set. Called by demo/tasks.py and by tests.

    <folder>/images/ISIC_0000000.jpg ...   one folder for all centers, as in the benchmark
    <folder>/train_test_split.csv          image,target,center,fold,fold2

Training images are the paper's (9930, 3163, 2691, 1807, 655, 351) divided by 50, at least 8: so few that what other hospitals
and public images teach can be seen. Test sets are larger than the paper's share, for drawing is cheap and small test sets
measure little. Every center has its own camera and its own mix of classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhelp_core.data.fed_isic import COLUMNS
from fedhelp_core.data.phantom.dermoscopy import LESIONS, PUBLIC_LESIONS, Camera, Lesion, draw
from fedhelp_core.data.phantom.drawing import Progress, Public, chance, draw_all, save


@dataclass(frozen=True, kw_only=True)
class Site:
    """One center: how many images, through which camera, of which mix of classes."""

    train: int
    test: int
    camera: Camera
    mix: tuple[float, ...]
    """Relative frequency of each class."""


SITES: tuple[Site, ...] = (
    Site(train=199, test=96, mix=(3, 4, 3, 1, 2, 1, 1, 1), camera=Camera(hair=0.4)),
    Site(train=63, test=96, mix=(2, 5, 1, 1, 3, 2, 1, 1), camera=Camera(red=1.06, blue=0.92, vignette=0.6, size=0.50, hair=1.0)),
    Site(train=54, test=96, mix=(2, 2, 4, 2, 2, 1, 1, 2), camera=Camera(red=0.93, blue=1.08, exposure=0.90, gamma=1.1, tilt=0.15)),
    Site(train=36, test=96, mix=(1, 3, 2, 1, 1, 2, 2, 1), camera=Camera(red=1.02, blue=0.96, exposure=1.08, gamma=0.92, size=0.66, hair=2.0)),
    Site(train=13, test=96, mix=(3, 2, 1, 1, 1, 1, 1, 2), camera=Camera(red=0.98, blue=0.90, skin=(0.80, 0.61, 0.51), tilt=-0.15, noise=0.03)),
    Site(train=8, test=96, mix=(1, 2, 1, 2, 1, 1, 2, 1),
         camera=Camera(red=1.05, blue=1.05, exposure=0.93, vignette=0.4, size=0.45, hair=1.5, noise=0.02)),
)


def write_fed_isic(folder: Path, *, seed: int, sites: Sequence[Site] = SITES, progress: Progress | None = None) -> None:
    """Draw `sites` below `folder`. The same seed draws the same pixels."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, int, int, str, str]] = []
    jobs: list[tuple[Path, Lesion, Camera, np.random.Generator]] = []
    for center, site in enumerate(sites):
        for fold, count in (("train", site.train), ("test", site.test)):
            labels = _labels(count, site.mix, np.random.default_rng([seed, center, len(fold)]))
            for label in labels:
                number = len(rows)
                name = f"ISIC_{number:07d}"
                rows.append((name, label, center, fold, f"{fold}_{center}"))
                jobs.append((images / f"{name}.jpg", _by_number(LESIONS, label), site.camera, chance(seed, center, number)))
    draw_all(_draw_one, jobs, "hospital", progress)
    with (folder / "train_test_split.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def any_camera(rng: np.random.Generator) -> Camera:
    """One of the many cameras that public images were taken with."""
    red, blue, exposure = rng.uniform(0.85, 1.15), rng.uniform(0.75, 1.2), rng.uniform(0.8, 1.15)
    return Camera(
        red=red, blue=blue, exposure=exposure, gamma=rng.uniform(0.8, 1.25), size=rng.uniform(0.42, 0.7), hair=rng.uniform(0, 2),
        vignette=rng.uniform(0, 0.7), tilt=rng.uniform(-0.2, 0.2), noise=rng.uniform(0.005, 0.03))


def _draw_one(job: tuple[Path, Lesion, Camera, np.random.Generator]) -> None:
    path, lesion, camera, rng = job
    save(draw(lesion, camera, rng), path)


def _labels(count: int, mix: Sequence[float], rng: np.random.Generator) -> list[int]:
    """`count` class numbers in the proportions of `mix`, at least one of each where there is room, in random order."""
    shares = np.array(mix) / sum(mix) * max(count - len(mix), 0)
    counts = np.floor(shares).astype(int) + (1 if count >= len(mix) else 0)
    for label in np.argsort(shares % 1)[::-1][: count - int(counts.sum())]:
        counts[label] += 1
    labels = np.repeat(np.arange(len(mix)), counts)
    return [int(label) for label in rng.permutation(labels)]


def _by_number(lesions: Mapping[str, Lesion], number: int) -> Lesion:
    return list(lesions.values())[number]


PUBLIC = Public(
    classes=tuple(PUBLIC_LESIONS),
    draw=lambda number, rng: draw(_by_number(PUBLIC_LESIONS, number % len(PUBLIC_LESIONS)), any_camera(rng), rng))
