"""JPEG and PNG files as square 8-bit RGB arrays. Called for private images by `arrays`, for public ones by softlabels.

Both get the same treatment, so that Eq 2's public images look to the proxy like private ones. Shapes: S the side in pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SUFFIXES = (".jpeg", ".jpg", ".png")
# What Pillow raises for damaged files: SyntaxError for a broken PNG, struct.error and TypeError for EXIF tags of another type.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError)


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


def decode_all(paths: Sequence[Path], size: int) -> Iterator[Decoded]:
    """In order, on a few threads: Pillow decodes outside the interpreter's lock."""
    workers = min(8, os.cpu_count() or 1)
    block = 64 * workers  # so that a large folder is never decoded far ahead of its reader
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), block):
            yield from pool.map(lambda path: decode(path, size), paths[start : start + block])


def decode(path: Path, size: int) -> Decoded:
    """The file at `path`, upright, its shorter side scaled to `size`, the centre cut out."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Decoded(path, problem=f"{path}: no such image file; correct the list or the images folder")
    except OSError as e:
        return Decoded(path, problem=f"{path}: cannot be read as an image ({e}); replace or remove it")
    return decode_bytes(raw, size, str(path))


def decode_bytes(raw: bytes, size: int, name: str) -> Decoded:
    """As `decode`, of a file's bytes; `name` is what messages call it."""
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG", "PNG")) as image:
            pixels_SSC = _fitted(_as_rgb(ImageOps.exif_transpose(image)), size)
    except BROKEN as e:
        return Decoded(Path(name), problem=f"{name}: cannot be read as an image ({e}); replace or remove it")
    return Decoded(Path(name), hashlib.sha256(raw).hexdigest(), pixels_SSC)


def square(pixels_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), or grey (H, W), prepared as files are."""
    return _fitted(_as_rgb(Image.fromarray(pixels_HWC)), size)


def _fitted(image: Image.Image, size: int) -> NDArray[np.uint8]:
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit grey keeps its upper 8 bits, where Pillow's own conversion would clip to white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
