"""How much a file, a document or an answer from elsewhere may ask for: one budget, checked from headers before anything is allocated.

Called by every reader of bytes that nobody vouches for. A small file can announce terabytes; what it announces is held against these numbers and
against its own length. Foreign decoders are called inside `foreign`, since they raise whatever they like.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedhelp_core.printable import first_line

MOST_PIXELS = 178_956_970
"""Of one picture, 178 megapixels, Pillow's own bound (twice what fits into 256 MiB as RGB): more is a slide of pathology, or made to fill memory."""
MOST_VOXELS = 2**31
"""Of one volume, all its slices together: 8 GiB as float32, four times the largest clinical CT."""
MOST_GRID_VOXELS = 2**29
"""After resampling: 2 GiB as float32, and as much again several times for its coordinates; a whole body at 1 mm."""
MOST_PICTURE_BYTES = 256 * 2**20
"""Of a picture's file: more than its pixels take."""
MOST_VOLUME_BYTES = 16 * 2**30
"""Of a volume's file, or of all its slices."""
MOST_LIST_BYTES = 128 * 2**20
"""Of a CSV or a datalist: more than a million rows; parsed, JSON takes twenty times its length."""
MOST_YAML_BYTES = 2**20
"""Of a YAML file: a federation of thousands of silos."""
MOST_YAML_NODES = 100_000
"""Of a YAML document with all its aliases written out."""
MOST_COLUMNS = 1_000
"""Of a CSV."""
MOST_MEMBERS = 100_000
"""Files of one DICOM series."""
MOST_NESTING = 64
"""Of JSON and YAML: ours nest six levels, a CronJob twenty."""
MOST_RATIO = 1032
"""Bytes that one byte of deflated data can hold at the most."""
MOST_EXTENSION_BYTES = 64 * 2**20
"""Between a NIfTI header and its voxels."""
MOST_ARCHIVE_HEADER_BYTES = 2**20
"""Of a tar member's own header: a long name takes some kB."""
_IN_FLIGHT = 2 * 2**30  # decoded at once by all threads: eight threads with 60 megapixels each

Wrong = Callable[[str], Exception]
"""The caller's own error, made of what is wrong."""


class BytesInFlight:
    """A number of bytes that threads share; what is larger than all of it is let through alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        """Wait until `wanted` bytes are free; they are taken until the block ends. Not to be nested in one thread."""
        taken = min(wanted, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + taken <= self._most)
            self._taken += taken
        try:
            yield
        finally:
            with self._changed:
                self._taken -= taken
                self._changed.notify_all()


IN_FLIGHT = BytesInFlight(_IN_FLIGHT)
"""Of all of this process's decoders of pictures."""


@contextmanager
def foreign(wrong: Wrong, *ours: type[BaseException], strict: bool = False) -> Iterator[None]:
    """Around a library that decodes: whatever it raises becomes `wrong` of its first line; errors of `ours` pass. `strict`: warnings are errors.

    MemoryError and RecursionError are the file's doing too; KeyboardInterrupt and SystemExit pass.
    """
    try:
        if not strict:
            yield
            return
        with warnings.catch_warnings():  # one switch for the whole process: only for what runs in one thread
            warnings.simplefilter("error")
            yield
    except ours:
        raise
    except Exception as e:
        raise wrong(first_line(e)) from None


def regular_bytes(path: Path, most: int, wrong: Wrong) -> bytes:
    """The content of the regular file `path`, which has at most `most` bytes: no pipe or device, which may never end.

    Raises:
        OSError: it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = require_regular(file.fileno(), most, wrong)
        body = file.read(size + 1)
    if len(body) > size:
        raise wrong("became longer while it was read")
    return body


def require_regular(file: int | Path, most: int, wrong: Wrong) -> int:
    """The length of a regular file of at most `most` bytes.

    Raises:
        OSError: there is none.
    """
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise wrong("is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file, but a pipe or a device")
    if found.st_size > most:
        raise wrong(f"has {found.st_size:,} bytes, at most {most:,} expected")
    return found.st_size


def json_in(raw: bytes | str, wrong: Wrong, most: int = MOST_LIST_BYTES) -> Any:
    """The JSON document in `raw`, of at most `most` bytes and no deeper than the budget."""
    if len(raw) > most:
        raise wrong(f"has {len(raw):,} bytes, at most {most:,} expected")
    with foreign(wrong):
        document = json.loads(raw if isinstance(raw, str) else raw.decode())  # JSON is UTF-8; loads would guess at bytes
    require_shallow(document, wrong)
    return document


def require_shallow(document: Any, wrong: Wrong) -> None:
    """Nothing where lists and mappings in `document` nest no deeper than the budget."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MOST_NESTING):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)]
        if not level:
            return
    raise wrong(f"nests deeper than {MOST_NESTING} levels")


def picture_size(raw: bytes) -> tuple[int, int, int]:
    """Width, height and bytes a pixel that a PNG's or JPEG's header announces; zeros where there is no such header."""
    if raw[12:16] == b"IHDR" and len(raw) >= 26:
        width, height, depth, colours = struct.unpack(">IIBB", raw[16:26])
        return width, height, max(1, depth // 8) * {2: 3, 4: 2, 6: 4}.get(colours, 1)
    return jpeg_size(raw)


def jpeg_size(raw: bytes) -> tuple[int, int, int]:
    """As `picture_size`, of a JPEG or JPEG-LS stream."""
    place = _frame_header(raw)
    if place is None:
        return 0, 0, 0
    height, width, channels = struct.unpack(">HHB", raw[place + 5 : place + 10])
    return width, height, channels


def _frame_header(raw: bytes) -> int | None:
    """Where a JPEG says how large it is, and how it is written."""
    place = 2
    while place + 9 < len(raw) and raw[place] == 0xFF:
        kind = raw[place + 1]
        if kind == 0xFF:  # a fill byte
            place += 1
        elif kind in _FRAMES:
            return place
        else:
            place += 2 + int.from_bytes(raw[place + 2 : place + 4], "big")
    return None


def _is_progressive(raw: bytes) -> bool:
    """Whether a JPEG may have any number of scans."""
    place = _frame_header(raw)
    return place is not None and raw[place + 1] not in _BASELINE


_PIXELS_A_BYTE = {"jpeg": 1024, "png": 8 * MOST_RATIO}
"""What a JPEG's byte can hold is a bit a block of 64 pixels (progressive: its DC), taken twice for safety; a PNG's pixel takes a bit."""
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # JPEG's start-of-frame markers, and JPEG-LS's
_BASELINE = (0xC0, 0xC1)  # one scan a channel
_PIECE = 2**20  # bytes inflated at once, to be counted
_MOST_SCANS = 200  # of a progressive JPEG, which is gone through for each: encoders write ten


def require_picture(raw: bytes, wrong: Wrong) -> int:
    """How many bytes the picture in `raw` takes as pixels, which is plausible for so few bytes of file."""
    width, height, channels = picture_size(raw)
    pixels = width * height
    if pixels > MOST_PIXELS:
        raise wrong(f"is larger than {MOST_PIXELS // 10**6} megapixels, which is not read")
    kind = "jpeg" if raw.startswith(b"\xff\xd8") else "png"
    if pixels > 2**16 + len(raw) * _PIXELS_A_BYTE[kind]:
        raise wrong(f"announces {width} x {height} pixels in {len(raw):,} bytes, which cannot hold them")
    if kind == "jpeg" and _is_progressive(raw) and raw.count(b"\xff\xda") > _MOST_SCANS:
        raise wrong(f"is written in more than {_MOST_SCANS} scans")
    return pixels * max(channels, 1)


def require_inflatable(announced: int, stored: int, wrong: Wrong) -> None:
    """Nothing where `stored` bytes of deflated data can hold `announced` ones."""
    if announced > 2**16 + stored * MOST_RATIO:
        raise wrong(f"announces {announced:,} bytes in {stored:,} compressed ones, which cannot hold them")


def require_inflated(raw: bytes, most: int, wrong: Wrong) -> None:
    """Nothing where raw deflated data hold at most `most` bytes; they are counted, and not kept."""
    unpacker, found, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, raw
    with foreign(wrong):
        while rest and not unpacker.eof and found <= most:
            found += len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
    if found > most:
        raise wrong(f"holds more than {most:,} bytes")
