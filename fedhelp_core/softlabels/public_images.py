"""The public images: read from where they lie and prepared as the task's private ones are.

Called by `prefetch` alone. An image is known by the sha256 of its content, so renaming, moving or copying it changes nothing.
Prepared pixels wait in a temporary file ($TMPDIR), not in memory. Shapes: N images, C channels, S the side in pixels or voxels.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.public import Preparation, Prepared, Wanted
from fedhelp_core.errors import DataError, StorageFull, listed
from fedhelp_core.softlabels.image_sources import Source, open_sources

_AHEAD_PER_WORKER = 16  # images decoded ahead of their reader, so that a large set is never in memory


class PublicImages:
    """Distinct images in the order of their sha256, which no file name can change. Threads may share it."""

    def __init__(self, hashes: Sequence[str], slots: Sequence[int], shape: tuple[int, ...], duplicates: int, pixels: BinaryIO) -> None:
        self.hashes = tuple(hashes)
        """sha256 (hex) of each image's content, ascending."""
        self.shape = shape
        """Of one image: (C, S, S), or (C, S, S, S) of volumes."""
        self.duplicates = duplicates
        """Images left out because another one has the same content."""
        self._slots = slots
        self._file = pixels
        weakref.finalize(self, pixels.close)

    def pixels(self, chosen: Sequence[int]) -> NDArray[np.uint8]:
        """Images `chosen` (positions in `hashes`), channels last: (len(chosen), S, ..., C) uint8."""
        found = np.empty((len(chosen), *self.shape[1:], self.shape[0]), np.uint8)
        for row, position in zip(found, chosen, strict=True):
            read = os.preadv(self._file.fileno(), [row.data], self._slots[position] * row.nbytes)
            assert read == row.nbytes
        return found


def read_public_images(
    images: Path, preparation: Preparation, *, layout: str = "folder", wanted: Wanted = lambda _: True, most: int | None = None,
) -> PublicImages:
    """Prepare every public image, or `most` of them.

    Args:
        images: Folder or file of the images.
        preparation: The task's.
        layout: What `images` is, as in `config.PublicSetConfig`.
        wanted: Whether the image with this sha256 is read; the others are not decoded.
        most: How many are read, drawn at random and always the same; None: all.

    Raises:
        DataError: none there, or some that cannot be decoded, all of them listed.
        StorageFull: no room for the decoded pixels.
    """
    pixels: BinaryIO = tempfile.TemporaryFile(prefix="fedhelp-public-")  # noqa: SIM115
    try:
        slots: dict[str, int] = {}
        read = chosen = 0
        problems = []
        sources = open_sources(images, layout, preparation)
        for image in _prepared(sources if most is None else iter(_drawn(sources, most)), preparation.threads, wanted):
            read += 1
            if image.problem:
                problems.append(image.problem)
            elif image.pixels is not None:
                chosen += 1
                if image.sha256 not in slots:
                    slots[image.sha256] = len(slots)
                    _append(pixels, image.pixels)
        if problems or not read:
            raise DataError(listed(problems) or (
                f"{images}: at least one public image ({', '.join(preparation.suffixes)}) expected, found none; correct public_set.images"))
        pixels.flush()
    except BaseException:
        pixels.close()
        raise
    hashes = sorted(slots)
    return PublicImages(hashes, [slots[image] for image in hashes], preparation.shape, chosen - len(hashes), pixels)


def _append(file: BinaryIO, pixels: NDArray[np.uint8]) -> None:
    try:
        file.write(pixels.tobytes())
    except OSError as e:
        raise StorageFull(f"{tempfile.gettempdir()}: no room for decoded public images ({e.strerror}); free some, or set TMPDIR") from e


def _drawn(sources: Iterator[Source], most: int) -> list[Source]:
    """`most` of them, each with the same chance, without holding more (Vitter's algorithm R)."""
    chance, chosen = random.Random(0), list[Source]()
    for number, source in enumerate(sources):
        if number < most:
            chosen.append(source)
        elif (place := chance.randrange(number + 1)) < most:
            chosen[place] = source
    return chosen


def shard_of(image: str, shards: int) -> int:
    """The shard, from 1, that asks about the image with this sha256."""
    return int(image[:8], 16) % shards + 1


def in_shard(shard: tuple[int, int] | None) -> Wanted:
    """Images whose content falls to this shard (number from 1, of how many); None: all."""
    return lambda image: shard is None or shard_of(image, shard[1]) == shard[0]


def _prepared(sources: Iterator[Source], threads: bool, wanted: Wanted) -> Iterator[Prepared]:
    """In order, on a few threads: Pillow decodes outside the interpreter's lock."""
    workers = min(8, os.cpu_count() or 1) if threads else 1
    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(sources, _AHEAD_PER_WORKER * workers)):
            yield from pool.map(lambda source: source.prepared(wanted), block)
