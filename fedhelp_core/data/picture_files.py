"""JPEG and PNG files as pictures, upright, with nothing left open that changes what they show. Called by `decode` and `pictures`.

Libraries decode; what they only warn about or pass over is looked at here: damage inside a JPEG, a PNG's checksums, several pictures in one file,
colours of 16 bits, transparency. Grey of 16 bits keeps its numbers: how many bits are in use is one choice for all of a hospital's pictures.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from fedhelp_core.budget import IN_FLIGHT, MOST_PICTURE_BYTES, MOST_PIXELS, foreign, picture_size, regular_bytes, require_picture
from fedhelp_core.data.unusable import Unusable

SUFFIXES = (".jpeg", ".jpg", ".png")
BITS = (8, 10, 12, 14, 16)
"""What 16-bit files hold: detectors count in 10, 12 or 14 bits."""
_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = {
    b"GIF8": "a GIF", b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"BM": "a BMP", b"RIFF": "a WebP", b"\0\0\0\x0cjP": "a JPEG 2000",
    b"\xffO\xffQ": "a JPEG 2000", b"\xff\xd8\xff\xf7": "a JPEG-LS", b"%PDF": "a PDF", b"PK\x03\x04": "a zip",
    b"\x1f\x8b": "a gzip", b"8BPS": "a Photoshop"}
_COPIES = 3  # of its pixels at once: as decoded, upright, without what is not shown
_DISPLAY_GAMMA = 0.45455  # 1 / 2.2, which every screen undoes
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""The passes of an interlaced PNG: first column and row, steps to the right and down."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # from 89 megapixels; we have our own bound


@dataclass(frozen=True)
class Picture:
    """A file's pixels, upright."""

    image: Image.Image
    turned: int = 1
    """EXIF's orientation, which was undone: 1 to 8, 1 for upright."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read."""

    @property
    def deep(self) -> bool:
        """Whether it is grey of 16 bits."""
        return self.image.mode.startswith("I")


def read_file(path: Path) -> bytes:
    """A picture file's bytes.

    Raises:
        Unusable: no such file, or none that can be read.
    """
    try:
        return regular_bytes(path, MOST_PICTURE_BYTES, _unreadable(str(path)))
    except FileNotFoundError:
        raise Unusable(f"{path}: no such image file; correct the list or the images folder") from None
    except OSError as e:
        raise Unusable(f"{path}: cannot be read as an image ({e}); replace or remove it") from None


def picture_in(raw: bytes, name: str) -> Picture:
    """The picture in a file's bytes; `name` is what messages call it.

    Raises:
        Unusable: there is none, or what it shows is not certain.
    """
    wrong = _unreadable(name)
    with foreign(wrong, Unusable):
        return _png(raw, name) if raw.startswith(_PNG) else _jpeg(raw, name)


def bytes_of_pixels(raw: bytes) -> int:
    """How much memory the picture in `raw` takes while it is decoded and brought to size, as far as its header tells."""
    width, height, channels = picture_size(raw)
    return min(width * height, MOST_PIXELS) * max(channels, 1) * _COPIES + len(raw)


def _unreadable(name: str) -> Callable[[str], Unusable]:
    return lambda why: Unusable(f"{name}: cannot be read as an image ({why}); replace or remove it")


def deep_bits(paths: Iterable[Path]) -> int | None:
    """How many bits are in use in all 16-bit grey pictures of `paths` together; None where there is no such picture.

    What cannot be read is passed over: it is told when it is read for training.
    """
    deep = [path for path in paths if _says_16_bits_grey(path)]
    if not deep:
        return None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return bits_of(max(pool.map(_largest, deep)))


def bits_of(largest: int) -> int:
    """The fewest of `BITS` that hold `largest`."""
    return next(bits for bits in BITS if largest < 2**bits)


def eight_bits(picture: Picture, bits: int | None, name: str) -> Image.Image:
    """`picture`, its 16-bit grey brought to 8 bits by the `bits` in use; None: those in use in this picture alone.

    Raises:
        Unusable: it has more than `bits`.
    """
    if not picture.deep:
        return picture.image
    values = np.asarray(picture.image).astype(np.uint16)
    largest = int(values.max())
    if bits is not None and largest >= 2**bits:
        raise Unusable(
            f"{name}: has pixels up to {largest}, more than the {bits} bits of this hospital's other pictures; take it out, or correct pixel_bits")
    return Image.fromarray((values >> ((bits or bits_of(largest)) - 8)).astype(np.uint8))


def opaque(picture: Picture, name: str) -> Picture:
    """`picture` without an alpha channel that hides nothing.

    Raises:
        Unusable: it hides something, so that nobody knows what the picture shows there.
    """
    hidden = alpha_of(picture.image)
    if hidden is None:
        return picture
    if hidden.min() < 255:
        raise Unusable(f"{name}: has transparent pixels, and nobody knows on what ground they are to be shown; save it without transparency")
    plain = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}.get(picture.image.mode)
    return Picture(picture.image.convert(plain) if plain else picture.image, picture.turned, picture.notes)


def alpha_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """How opaque each pixel is, 0 to 255; None where nothing says so."""
    if image.mode in ("LA", "PA", "RGBA"):
        return np.asarray(image.getchannel("A"))
    if "transparency" not in image.info:
        return None
    if image.mode.startswith("I"):
        return np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _jpeg(raw: bytes, name: str) -> Picture:
    if not raw.startswith(b"\xff\xd8\xff") or raw.startswith(b"\xff\xd8\xff\xf7"):
        other = next((what for start, what in _OTHERS.items() if raw.startswith(start)), "")
        other = "a DICOM" if raw[128:132] == b"DICM" else other
        said = f"is {other} file" if other else f"{'neither JPEG nor PNG' if raw else 'no bytes in it'}"
        raise Unusable(f"{name}: cannot be read as an image ({said}; JPEG or PNG expected); replace or remove it")
    require_picture(raw, _unreadable(name))
    with Image.open(io.BytesIO(raw), formats=("JPEG",)) as head:
        if head.mode not in ("L", "RGB"):
            raise Unusable(f"{name}: has colours for print ({head.mode}), which nobody knows how to show; save it as RGB")
        turned = _orientation(head)
        mode = head.mode
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(raw, colorspace="GRAY" if mode == "L" else "RGB", strict=True)
    return Picture(_upright(Image.fromarray(pixels[..., 0] if mode == "L" else pixels), turned), turned)


def _png(raw: bytes, name: str) -> Picture:
    chunks = {kind: bytes(body[:13]) for kind, body in _chunks(raw, name)}
    depth, colours = chunks[b"IHDR"][8:10]
    if b"acTL" in chunks:
        raise Unusable(f"{name}: holds several pictures (an animation); one picture a file expected")
    require_picture(raw, _unreadable(name))
    if depth == 16 and colours != 0:
        raise Unusable(f"{name}: has 16 bits a channel and several channels, which is not read; save it with 8 bits, or as grey")
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        image.load()
        turned = _orientation(image)
    interlaced = chunks[b"IHDR"][12] == 1
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if (interlaced or not np.asarray(last_row).any()) and not _is_whole(raw, chunks[b"IHDR"]):
        raise Unusable(f"{name}: cannot be read as an image (its last rows are missing); replace or remove it")
    gamma = image.info.get("gamma", _DISPLAY_GAMMA)
    notes = () if abs(gamma - _DISPLAY_GAMMA) < 0.01 else (f"gamma {gamma:g} (gAMA) is not applied: pixels as stored",)
    return Picture(_upright(image, turned), turned, notes)


def _chunks(raw: bytes, name: str) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk, whose checksum is right.

    Raises:
        Unusable: one is damaged or missing.
    """
    view, place, kind = memoryview(raw), len(_PNG), b""
    while kind != b"IEND":
        length = int.from_bytes(raw[place : place + 4], "big")
        kind, end = raw[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(raw) or zlib.crc32(view[place + 4 : end]) != int.from_bytes(raw[end : end + 4], "big"):
            raise Unusable(f"{name}: cannot be read as an image (chunk {place:,} bytes in is damaged or cut); replace or remove it")
        yield kind, view[place + 8 : end]
        place = end + 4


def _is_whole(raw: bytes, head: bytes) -> bool:
    """Whether a PNG's pixels are all there: Pillow leaves what is missing at the end black. Unpacking twice, so where that can be alone."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    sides = [((width - left + right - 1) // right, (height - top + down - 1) // down) for left, top, right, down in passes]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sides if columns > 0 and rows > 0)
    unpacker, found = zlib.decompressobj(), 0
    for kind, body in _chunks(raw, ""):
        if kind == b"IDAT" and found < expected:
            found += len(unpacker.decompress(body, expected - found))
    return bool(found >= expected)


def _orientation(image: Image.Image) -> int:
    """EXIF's; 1 where there is none, or none that EXIF knows."""
    said: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    return said if said in _TURNS else 1


def fitted(image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> NDArray[np.uint8]:
    """`image` as a square of `size` pixels: its shorter side scaled, the centre cut out."""
    return np.array(ImageOps.fit(image, (size, size), resampling), dtype=np.uint8)


def _upright(image: Image.Image, turned: int) -> Image.Image:
    if turned == 1:
        return image
    upright = image.transpose(_TURNS[turned])
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _says_16_bits_grey(path: Path) -> bool:
    """Whether its first 26 bytes are those of a grey PNG of 16 bits."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        return False
    return head.startswith(_PNG) and head[24:26] == b"\x10\0"


def _largest(path: Path) -> int:
    try:
        raw = read_file(path)
        with IN_FLIGHT.reserved(bytes_of_pixels(raw)):
            return int(np.asarray(picture_in(raw, str(path)).image).max())
    except Unusable:
        return 0
