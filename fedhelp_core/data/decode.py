"""JPEG and PNG files as square 8-bit RGB arrays. Called for private images by `arrays`, for public ones by softlabels.

Both get the same treatment, so that Eq 2's public images look to the proxy like private ones. Shapes: S the side in pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.budget import IN_FLIGHT
from fedhelp_core.data.picture_files import Picture, bytes_of_pixels, eight_bits, fitted, opaque, picture_in, read_file
from fedhelp_core.data.unusable import Unusable


def preprocessing(image_size: int) -> str:
    """How images are prepared, in words: part of the name under which decoded images and answers are kept."""
    return f"rgb8, shorter side {image_size}, bicubic, centre crop"


@dataclass(frozen=True)
class Decoded:
    """One file: its pixels, or what is wrong with it."""

    path: Path
    sha256: str = ""
    """Of the file's bytes, hex."""
    pixels_SSC: NDArray[np.uint8] | None = None
    problem: str = ""


def decode_all(paths: Sequence[Path], size: int, bits: int | None = None) -> Iterator[Decoded]:
    """In order, on a few threads: libraries decode outside the interpreter's lock. `bits`: in use in the 16-bit pictures of all of them."""
    workers = min(8, os.cpu_count() or 1)
    block = 64 * workers  # so that a large folder is never decoded far ahead of its reader
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), block):
            yield from pool.map(partial(decode, size=size, bits=bits), paths[start : start + block])


def picture_at(path: Path) -> Picture:
    """The picture at `path`, upright, at its full size.

    Raises:
        Unusable: no such file, or none whose picture is certain.
    """
    return opaque(picture_in(read_file(path), str(path)), str(path))


def decode(path: Path, size: int, bits: int | None = None) -> Decoded:
    """The file at `path`, upright, its shorter side scaled to `size`, the centre cut out."""
    try:
        raw = read_file(path)
    except Unusable as e:
        return Decoded(path, problem=str(e))
    return decode_bytes(raw, size, str(path), bits)


def decode_bytes(raw: bytes, size: int, name: str, bits: int | None = None) -> Decoded:
    """As `decode`, of a file's bytes; `name` is what messages call it."""
    try:
        with IN_FLIGHT.reserved(bytes_of_pixels(raw)):
            pixels_SSC = prepared(opaque(picture_in(raw, name), name), size, name, bits)
    except Unusable as e:
        return Decoded(Path(name), problem=str(e))
    return Decoded(Path(name), hashlib.sha256(raw).hexdigest(), pixels_SSC)


def prepared(picture: Picture, size: int, name: str, bits: int | None = None) -> NDArray[np.uint8]:
    """What the network sees of `picture`: (S, S, 3).

    Raises:
        Unusable: it has more than `bits`.
    """
    return fitted(eight_bits(picture, bits, name).convert("RGB"), size)


def square(pixels_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), or grey (H, W), prepared as files are."""
    return fitted(Image.fromarray(pixels_HWC).convert("RGB"), size)
