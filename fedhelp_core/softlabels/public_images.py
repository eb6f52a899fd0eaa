"""The public images: a folder of JPEG and PNG files, decoded to RGB, resized and cropped to squares.

Called by `prefetch` alone. An image is known by the sha256 of its file's bytes, so renaming, moving or copying it changes
nothing. Shapes: N images, S the side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.decode import SUFFIXES, Decoded, decode_all
from fedhelp_core.errors import DataError

_KEPT_BYTES = 2**31  # decoded images are kept up to this much memory; a larger set is decoded again when it is needed


@dataclass(frozen=True)
class PublicImages:
    """Distinct images in the order of their sha256, which no file name can change."""

    hashes: tuple[str, ...]
    """sha256 (hex) of each file's bytes, ascending."""
    image_size: int
    duplicates: int
    """Files left out because another one has the same bytes."""
    _paths: tuple[Path, ...] = field(repr=False)
    _kept_NSSC: NDArray[np.uint8] | None = field(repr=False)

    def pixels(self, chosen: Sequence[int]) -> NDArray[np.uint8]:
        """Images `chosen` (positions in `hashes`), (len(chosen), S, S, 3) uint8.

        Raises:
            DataError: a file changed since it was listed.
        """
        if self._kept_NSSC is not None:
            return self._kept_NSSC[list(chosen)]
        found = list(decode_all([self._paths[i] for i in chosen], self.image_size))
        for i, item in zip(chosen, found, strict=True):
            if item.problem or item.sha256 != self.hashes[i]:
                raise DataError(f"{self._paths[i]}: changed while it was being used; keep the folder still and run again")
        return np.stack([item.pixels_SSC for item in found if item.pixels_SSC is not None])


def read_public_images(folder: Path, image_size: int) -> PublicImages:
    """Decode every JPEG and PNG below `folder`; names that begin with a dot are left out.

    Raises:
        DataError: no such folder, no image in it, or files that cannot be decoded, all of them listed.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of public images; correct public_set.images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if not paths:
        raise DataError(f"{folder}: at least one public image ({', '.join(SUFFIXES)}) expected, found none; correct public_set.images")
    keep = len(paths) * image_size**2 * 3 <= _KEPT_BYTES
    first: dict[str, Decoded] = {}
    problems: list[str] = []
    for item in decode_all(paths, image_size):
        if item.problem:
            problems.append(item.problem)
        else:
            first.setdefault(item.sha256, item if keep else Decoded(item.path, item.sha256))
    if problems:
        raise DataError(problems)
    hashes = tuple(sorted(first))
    kept = np.stack([p for p in (first[h].pixels_SSC for h in hashes) if p is not None]) if keep else None
    return PublicImages(hashes, image_size, len(paths) - len(hashes), tuple(first[h].path for h in hashes), kept)
