"""What all phantoms share: chance of one image, drawing on several threads, files, and a public set. Called by its neighbours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.decode import square
from fedhelp_core.data.items import Item
from fedhelp_core.data.reading import read_examples

_QUALITY = 92  # JPEG
PUBLIC_STREAM, TEACHER_STREAM = 1001, 1002  # keep apart the random streams of hospitals, public images, teacher's images

Progress = Callable[[str], None]
Save = Callable[[Path], None]
Prepared = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images (N, C, ...) uint8, and beside them class numbers int64 (N,) or masks (N, 1, ...) uint8."""
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


class PublicSet(Protocol):
    """A drawn public set, and what its teacher learnt from: other drawings of the same kind, with labels or masks."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the teacher tells apart."""

    @property
    def answers(self) -> int:
        """Probabilities that the teacher gives of an image or a pixel."""

    def write(self, folder: Path, *, count: int, seed: int, progress: Progress | None = None) -> None:
        """`count` unlabelled files."""

    def prepared(self, count: int, seed: int, task: TaskConfig) -> Prepared:
        """What the teacher learns from, prepared as the task's own images are; none of it is in the public set."""


@dataclass(frozen=True)
class Public:
    """Drawn images of other classes than the task's: the unlabelled public set, and what a teacher learnt from."""

    classes: tuple[str, ...]
    draw: Callable[[int, np.random.Generator], NDArray[Any]]
    """(number of the image, chance) -> pixels; its class is the number modulo the number of classes."""

    @property
    def answers(self) -> int:
        """A probability of each class."""
        return len(self.classes)

    def write(self, folder: Path, *, count: int, seed: int, progress: Progress | None = None) -> None:
        """`count` unlabelled files."""
        folder.mkdir(parents=True, exist_ok=True)
        draw_all(
            lambda number: save(self.draw(number, chance(seed, PUBLIC_STREAM, number)), folder / f"public_{number:05d}.jpg"),
            range(count), "public", progress)

    def labelled(self, count: int, seed: int) -> tuple[list[NDArray[Any]], list[int]]:
        """(images, class numbers) for the teacher, none of them in the public set."""
        images = [self.draw(number, chance(seed, TEACHER_STREAM, number)) for number in range(count)]
        return images, [number % len(self.classes) for number in range(count)]

    def prepared(self, count: int, seed: int, task: TaskConfig) -> Prepared:
        """The same as arrays, images (N, 3, S, S)."""
        images, labels = self.labelled(count, seed)
        return np.stack([square(image, task.image_size).transpose(2, 0, 1) for image in images]), np.array(labels)


@dataclass(frozen=True)
class PublicMasks:
    """Drawn images of what the hospitals' show, taken with any scanner: without masks the public set, with them what a teacher learnt from."""

    classes: tuple[str, ...]
    suffix: str
    """Of the files."""
    draw: Callable[[int, np.random.Generator], tuple[Save, Save]]
    """(number of the image, chance) -> what writes the image into a file, and what writes its mask."""

    answers: int = 1
    """Probabilities of a pixel: the foreground's alone, or of several with the background's first; of regions each one's."""

    def write(self, folder: Path, *, count: int, seed: int, progress: Progress | None = None) -> None:
        """`count` files without masks."""
        folder.mkdir(parents=True, exist_ok=True)
        draw_all(
            lambda number: self.draw(number, chance(seed, PUBLIC_STREAM, number))[0](folder / f"public_{number:05d}{self.suffix}"),
            range(count), "public", progress)

    def prepared(self, count: int, seed: int, task: TaskConfig) -> Prepared:
        """Images and masks, written and read as a hospital's are."""
        with tempfile.TemporaryDirectory(prefix="fedhelp-drawn-") as scratch:
            items = [Item(Path(scratch) / f"{n}{self.suffix}", mask=Path(scratch) / f"{n}_mask{self.suffix}") for n in range(count)]
            for number, item in enumerate(items):
                save_image, save_mask = self.draw(number, chance(seed, TEACHER_STREAM, number))
                assert item.mask is not None
                save_image(item.image)
                save_mask(item.mask)
            examples = list(read_examples(items, task))
        assert not any(example.problem for example in examples), [example.problem for example in examples if example.problem]
        return np.stack([e.image_CHW for e in examples if e.image_CHW is not None]), np.stack([np.asarray(e.target) for e in examples])
