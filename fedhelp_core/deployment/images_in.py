"""Files as a model in use sees them, by the functions that training prepares with; and which files a folder holds.

Called by `results` and by whatever serves a model. Pictures: JPEG, PNG, and DICOM of one grey image. Volumes: NIfTI, a folder of DICOM slices,
a multi-frame DICOM file. A file that cannot be used is a sentence beside the others. Volumes are opened one at a time.

Shapes: C channels, S the side in pixels or voxels; H, W and X, Y, Z an image's own sides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.budget import IN_FLIGHT
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data import decode, dicom, pictures
from fedhelp_core.data.grid import Volume
from fedhelp_core.data.names import ending_of, is_text, not_text
from fedhelp_core.data.picture_files import SUFFIXES, Picture, bytes_of_pixels, eight_bits, opaque, picture_in, read_file
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.disk import digest_of

if TYPE_CHECKING:
    from fedhelp_core.data.volumes import Placed

_NIFTI = (".nii.gz", ".nii")
_LEFT_ALONE = 5  # names that are told
_THUMBNAIL = 320  # pixels of a picture for people


@dataclass(frozen=True)
class Source:
    """One image, in one file or in a folder of DICOM slices."""

    path: Path
    called: str
    """What results call it: its path as it was given, or below the folder that was."""


@dataclass(frozen=True)
class Found:
    """What was asked about."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    """What a folder holds beside images."""
    problems: tuple[str, ...] = ()
    """What was named, or lies in a folder, and cannot be asked about."""


@dataclass(frozen=True)
class PictureGrid:
    """A picture whose shorter side was scaled to the network's, and its centre cut out. Of its pixels a small copy is kept, for people."""

    sides: tuple[int, int]
    """Height and width."""
    thumbnail: Image.Image
    """RGB, upright."""

    def back(self, answer_SS: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, S) -> (H, W), bilinear; 0 beside the square that the network sees."""
        return stretched(answer_SS, self.sides)


@dataclass(frozen=True)
class VolumeGrid:
    """A volume, and the way back to it from the network's cube."""

    volume: Volume
    placed: Placed

    def back(self, answer_SSS: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, S, S) -> (X, Y, Z), bilinear; 0 outside of the cube."""
        return self.placed.back(answer_SSS)


@dataclass(frozen=True)
class Prepared:
    """One image as the network sees it, with its own grid; or what is wrong with it."""

    source: Source
    sha256: str = ""
    """Of the file's bytes; of a folder of slices: of the sorted sha256s of its files."""
    image_CS: NDArray[np.uint8] | None = None
    grid: PictureGrid | VolumeGrid | None = None
    problem: str = ""


class Reader:
    """Reads images for one task. `bits`: in use in the hospital's 16-bit pictures, None: each one's own."""

    def __init__(self, task: TaskConfig, bits: int | None) -> None:
        self._task = task
        self._bits = bits
        self._prepare: Callable[[Source], Prepared] = self._picture
        if self._task.dimensions == 3:
            from fedhelp_core.data.volumes import VolumeReader  # with MONAI, which classification never waits for

            self._volumes = VolumeReader(task)
            self._prepare = self._volume

    def read(self, sources: Sequence[Source]) -> Iterator[Prepared]:
        """Each of `sources`, in order; pictures on a few threads and never far ahead of whoever reads."""
        one = partial(_told, self._prepare)
        if self._task.dimensions == 3:
            yield from map(one, sources)
            return
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(sources), 8 * workers):
                yield from pool.map(one, sources[start : start + 8 * workers])

    def _picture(self, source: Source) -> Prepared:
        raw = read_file(source.path)
        with IN_FLIGHT.reserved(bytes_of_pixels(raw)):
            return self.picture_in(raw, source)

    def picture_in(self, raw: bytes, source: Source) -> Prepared:
        """The picture in a file's bytes.

        Raises:
            Unusable: there is none, or none for this task.
        """
        is_dicom = raw[128:132] == b"DICM"
        picture = Picture(Image.fromarray(dicom.read_image(source.path))) if is_dicom else picture_in(raw, str(source.path))
        return self.of_picture(picture, hashlib.sha256(raw).hexdigest(), source)

    def of_picture(self, picture: Picture, sha256: str, source: Source) -> Prepared:
        """A picture that was read.

        Raises:
            Unusable: it is none for this task.
        """
        name, size = str(source.path), self._task.image_size
        if self._task.channels == 1:
            picture = pictures.grey(picture, name)
            image_CS = pictures.prepared(picture, size, name, self._bits)
        else:
            picture = opaque(picture, name)
            image_CS = decode.prepared(picture, size, name, self._bits).transpose(2, 0, 1)
        small = eight_bits(picture, self._bits, name).convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return Prepared(source, sha256, image_CS, PictureGrid((picture.image.height, picture.image.width), small))

    def _volume(self, source: Source) -> Prepared:
        from fedhelp_core.data.volumes import opened_channels

        channels = opened_channels((source.path,), self._task.channels)
        return self.of_volumes(channels, digest_of_all(source.path, channels[0]), source)

    def of_volumes(self, channels: Sequence[Volume], sha256: str, source: Source) -> Prepared:
        """A volume that was read, or those of several sequences.

        Raises:
            Unusable: it cannot be brought into the network's cube.
        """
        placed = self._volumes.placed(channels, source.path)
        return Prepared(source, sha256, placed.cube_CSSS, VolumeGrid(channels[0], placed))


def _told(prepare: Callable[[Source], Prepared], source: Source) -> Prepared:
    try:
        return prepare(source)
    except Unusable as e:
        return Prepared(source, problem=str(e))
    except OSError as e:  # of a file that vanished, or that may not be read
        return Prepared(source, problem=f"{source.path}: cannot be read ({e.strerror or e}); check its permissions")


def digest_of_all(path: Path, volume: Volume) -> str:
    """sha256 (hex) of a file; of a folder of slices: of the sorted sha256s of its files, whatever they are called."""
    files = [path] if path.is_file() else sorted({file for file, _ in volume.slices})
    digests = [digest_of(file)[0] for file in files]
    return digests[0] if path.is_file() else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def found_in(paths: Sequence[Path], task: TaskConfig) -> Found:
    """The images that `paths`, files and folders, stand for: a file as it was given, of a folder all images in it and below, by name."""
    sources: dict[Path, Source] = {}
    problems: list[str] = []
    others: list[str] = []
    of_volumes = task.dimensions == 3
    for path in paths:
        if not path.exists():
            problems.append(f"{path}: no such file or folder; correct the path")
        elif path.is_dir():
            before = len(sources)
            for inside in (_volumes_below if of_volumes else _pictures_below)(path, path, problems, others):
                called = inside.relative_to(path).as_posix() if inside != path else path.name
                sources.setdefault(inside, Source(inside, called))
            if len(sources) == before:
                what = "NIfTI file or DICOM series" if of_volumes else f"picture ({', '.join(SUFFIXES)} or DICOM)"
                problems.append(f"{path}: holds no {what}; give another folder, or the files themselves")
        else:
            sources.setdefault(path, Source(path, str(path)))
    shown = ", ".join(others[:_LEFT_ALONE]) + (", ..." if len(others) > _LEFT_ALONE else "")
    return Found(tuple(sources.values()), (f"no images, left alone: {shown}",) if others else (), tuple(problems))


def _entries(folder: Path, problems: list[str]) -> Iterator[Path]:
    """What a folder holds, by name, without what is hidden."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as e:
        problems.append(f"{folder}: cannot be listed ({e.strerror or e}); check its permissions")
        return
    for path in entries:
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if not is_text(path):
            problems.append(not_text(path))
        else:
            yield path


def _pictures_below(folder: Path, top: Path, problems: list[str], others: list[str]) -> Iterator[Path]:
    for path in _entries(folder, problems):
        if path.is_dir():
            if not path.is_symlink():  # a link to a folder above would go round for ever
                yield from _pictures_below(path, top, problems, others)
        elif ending_of(path.name, SUFFIXES) or _seems_dicom(path):
            yield path
        else:
            others.append(path.relative_to(top).as_posix())


def _volumes_below(folder: Path, top: Path, problems: list[str], others: list[str]) -> Iterator[Path]:
    """NIfTI and multi-frame files; a folder with single slices is one volume, with all that it holds."""
    entries = list(_entries(folder, problems))
    dicoms = [path for path in entries if not path.is_dir() and _seems_dicom(path)]
    if any(dicom.is_dicom(path) and not dicom.is_multiframe(path) for path in dicoms):
        yield folder
        return
    for path in entries:
        if path.is_dir():
            if not path.is_symlink():
                yield from _volumes_below(path, top, problems, others)
        elif path in dicoms or ending_of(path.name, _NIFTI):
            yield path
        else:
            others.append(path.relative_to(top).as_posix())


def _seems_dicom(path: Path) -> bool:
    return path.name.lower() != "dicomdir" and (path.name.lower().endswith(".dcm") or dicom.is_dicom(path))


def stretched(answer_SS: NDArray[np.float32], sides: tuple[int, int]) -> NDArray[np.float32]:
    """What lies on the central square of a picture, (S, S), on all of its pixels (H, W): bilinear, 0 beside the square."""
    rows, columns = (_along(side, min(sides), len(answer_SS)) for side in sides)
    return _interpolated(_interpolated(answer_SS, rows).T, columns).T


def _along(side: int, seen: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Of each of `side` pixels: the two network's pixels (of `size`) that it lies between, the share of the second, and whether it was seen."""
    start = (side - seen) / 2
    centre = (np.arange(side) + 0.5 - start) * size / seen - 0.5
    inside = (centre >= -0.5) & (centre <= size - 0.5)
    below = np.floor(centre).clip(0, size - 1).astype(np.int64)
    above = (below + 1).clip(0, size - 1)
    return below, above, (centre - below).clip(0, 1).astype(np.float32), inside


def _interpolated(
    answer: NDArray[np.float32], places: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]],
) -> NDArray[np.float32]:
    """Along the first axis."""
    below, above, share, inside = places
    found: NDArray[np.float32] = answer[below] * (1 - share)[:, None] + answer[above] * share[:, None]
    found[~inside] = 0
    return found
