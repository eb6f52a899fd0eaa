"""What all phantoms share: chance of one image, drawing on several threads, files, and a public set. Called by its neighbours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_QUALITY = 92  # JPEG
_PUBLIC_STREAM, _TEACHER_STREAM = 1001, 1002  # keep apart the random streams of hospitals, public images, teacher's images

Progress = Callable[[str], None]
_Job = TypeVar("_Job")


def chance(*entropy: int) -> np.random.Generator:
    """The generator of one image: the same numbers, the same pixels, on any number of threads."""
    return np.random.default_rng(entropy)


def draw_all(one: Callable[[_Job], None], jobs: Sequence[_Job], what: str, progress: Progress | None) -> None:
    """`one` of every job; NumPy and Pillow leave the interpreter's lock for most of the work."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(one, jobs), start=1):
            if progress is not None and (done % 50 == 0 or done == len(jobs)):
                progress(f"{what} images {done}/{len(jobs)}")


def save(pixels: NDArray[Any], path: Path) -> None:
    """An 8-bit grey or colour image as JPEG or PNG, by the path's suffix."""
    Image.fromarray(pixels).save(path, quality=_QUALITY)  # which PNG ignores


@dataclass(frozen=True)
class Public:
    """Drawn images of other classes than the task's: the unlabelled public set, and what a teacher learnt from."""

    classes: tuple[str, ...]
    draw: Callable[[int, np.random.Generator], NDArray[Any]]
    """(number of the image, chance) -> pixels; its class is the number modulo the number of classes."""

    def write(self, folder: Path, *, count: int, seed: int, progress: Progress | None = None) -> None:
        """`count` unlabelled files."""
        folder.mkdir(parents=True, exist_ok=True)
        draw_all(
            lambda number: save(self.draw(number, chance(seed, _PUBLIC_STREAM, number)), folder / f"public_{number:05d}.jpg"),
            range(count), "public", progress)

    def labelled(self, count: int, seed: int) -> tuple[list[NDArray[Any]], list[int]]:
        """(images, class numbers) for the teacher, none of them in the public set."""
        images = [self.draw(number, chance(seed, _TEACHER_STREAM, number)) for number in range(count)]
        return images, [number % len(self.classes) for number in range(count)]
