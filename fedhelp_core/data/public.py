"""How a task's public images are prepared: as its private ones are, so that Eq 2's images look to the proxy like those of Eq 1.

Called by softlabels and by check. No PyTorch until a volume is read. Shapes: C channels, S the side in pixels or voxels; pixels
are channels last, (S, S, C) or (S, S, S, C).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode, pictures
from fedhelp_core.data.examples import Example, image_shape, preparation
from fedhelp_core.data.picture_files import SUFFIXES, read_file
from fedhelp_core.data.unusable import Unusable

if TYPE_CHECKING:
    from fedhelp_core.data.volumes import VolumeReader

VOLUME_SUFFIXES = (".nii.gz", ".nii")


Wanted = Callable[[str], bool]
"""Whether the image with this sha256 is to be decoded."""


@dataclass(frozen=True)
class Prepared:
    """One public image: its pixels (S, ..., C), or what is wrong with it; neither where it was not wanted."""

    sha256: str = ""
    """Of its content, hex: the file's bytes, or the pixels where a file holds many images."""
    pixels: NDArray[np.uint8] | None = None
    problem: str = ""


class Preparation(Protocol):
    """One task's way."""

    shape: tuple[int, ...]
    """(C, S, S), or (C, S, S, S) of volumes."""
    words: str
    """How images are prepared: part of what a teacher's answers are known by."""
    suffixes: tuple[str, ...]
    """Endings of files that hold an image, lower case."""
    threads: bool
    """Whether several images may be prepared at once."""

    def of_file(self, path: Path, wanted: Wanted) -> Prepared:
        """The image in a file."""

    def of_bytes(self, raw: bytes, name: str, wanted: Wanted) -> Prepared:
        """The image in a file's bytes; `name` is what messages call it."""

    def of_pixels(self, pixels_HWC: NDArray[np.uint8], sha256: str, name: str, wanted: Wanted) -> Prepared:
        """An image (H, W, 3) that is decoded already, known by `sha256`."""


def preparation_of(task: TaskConfig) -> Preparation:
    """That of `task`."""
    if task.dimensions == 3:
        return _Volumes(task)
    return _Colour(task) if task.channels == 3 else _Grey(task)


class _Colour:
    suffixes: tuple[str, ...] = SUFFIXES
    threads: bool = True

    def __init__(self, task: TaskConfig) -> None:
        self.shape = image_shape(task)
        self.words = decode.preprocessing(task.image_size)
        self._size = task.image_size

    def of_file(self, path: Path, wanted: Wanted) -> Prepared:
        return _of_file(self, path, wanted)

    def of_bytes(self, raw: bytes, name: str, wanted: Wanted) -> Prepared:
        sha256 = hashlib.sha256(raw).hexdigest()
        if not wanted(sha256):
            return Prepared(sha256)
        found = decode.decode_bytes(raw, self._size, name)
        return Prepared(found.sha256, found.pixels_SSC, found.problem)

    def of_pixels(self, pixels_HWC: NDArray[np.uint8], sha256: str, name: str, wanted: Wanted) -> Prepared:
        del name
        return Prepared(sha256, decode.square(pixels_HWC, self._size) if wanted(sha256) else None)


class _Grey:
    suffixes: tuple[str, ...] = SUFFIXES
    threads: bool = True

    def __init__(self, task: TaskConfig) -> None:
        self.shape = image_shape(task)
        self.words = _of_images(preparation(task))
        self._size = task.image_size

    def of_file(self, path: Path, wanted: Wanted) -> Prepared:
        return _of_file(self, path, wanted)

    def of_bytes(self, raw: bytes, name: str, wanted: Wanted) -> Prepared:
        sha256 = hashlib.sha256(raw).hexdigest()
        return _channels_last(pictures.read_image(raw, Path(name), self._size), sha256) if wanted(sha256) else Prepared(sha256)

    def of_pixels(self, pixels_HWC: NDArray[np.uint8], sha256: str, name: str, wanted: Wanted) -> Prepared:
        if not wanted(sha256):
            return Prepared(sha256)
        if (pixels_HWC != pixels_HWC[..., :1]).any():
            return Prepared(problem=f"{name}: is a colour picture, but this task's images are grey; choose other public images")
        return Prepared(sha256, np.moveaxis(pictures.grey_square(np.ascontiguousarray(pixels_HWC[..., 0]), self._size), 0, -1))


class _Volumes:
    suffixes: tuple[str, ...] = VOLUME_SUFFIXES
    threads: bool = False  # MONAI's switches are the process's

    def __init__(self, task: TaskConfig) -> None:
        self.shape = image_shape(task)
        self.words = _of_images(preparation(task))
        self._task = task

    @cached_property
    def _reader(self) -> VolumeReader:
        from fedhelp_core.data.volumes import VolumeReader  # with MONAI and PyTorch, which the hub's check never waits for

        return VolumeReader(self._task)

    def of_file(self, path: Path, wanted: Wanted) -> Prepared:
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            return _unreadable(path, e)
        return _channels_last(self._reader.read_image(path), sha256) if wanted(sha256) else Prepared(sha256)

    def of_bytes(self, raw: bytes, name: str, wanted: Wanted) -> Prepared:
        del raw, wanted
        return Prepared(problem=f"{name}: volumes are read from a folder or a datalist; set public_set.layout")

    def of_pixels(self, pixels_HWC: NDArray[np.uint8], sha256: str, name: str, wanted: Wanted) -> Prepared:
        del pixels_HWC, sha256, wanted
        return Prepared(problem=f"{name}: is a picture, but this task's images are volumes; choose other public images")


def _of_file(preparation: _Colour | _Grey, path: Path, wanted: Wanted) -> Prepared:
    try:
        return preparation.of_bytes(read_file(path), str(path), wanted)
    except Unusable as e:
        return Prepared(problem=str(e))


def _unreadable(path: Path, error: OSError) -> Prepared:
    if isinstance(error, FileNotFoundError):
        return Prepared(problem=f"{path}: no such image file; correct the list or the images folder")
    return Prepared(problem=f"{path}: cannot be read as an image ({error}); replace or remove it")


def _channels_last(found: Example, sha256: str) -> Prepared:
    if found.image_CHW is None:
        return Prepared(problem=found.problem)
    return Prepared(sha256, np.ascontiguousarray(np.moveaxis(found.image_CHW, 0, -1)))


def _of_images(words: str) -> str:
    """`words` without what they say of masks: public images have none."""
    return words.partition("; mask nearest")[0]
