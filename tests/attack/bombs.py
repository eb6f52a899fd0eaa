"""Small files that announce much, and files that never end: one list for the tests and for anybody's own reader."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Bomb = Callable[[Path], Path]
"""Writes into a folder; the file."""


def _written(name: str, body: bytes) -> Bomb:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(body)
        return folder / name

    return write


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, *, depth: int = 8, colours: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def jpeg(width: int, height: int, *, scans: int = 1) -> bytes:
    """A small JPEG that announces another size, and as many scans as asked for."""
    raw = io.BytesIO()
    Image.new("L", (16, 16)).save(raw, "JPEG", progressive=scans > 1)
    body = bytearray(raw.getvalue())
    place = next(i for i in range(len(body)) if body[i] == 0xFF and body[i + 1] in (0xC0, 0xC2))
    body[place + 5 : place + 9] = struct.pack(">HH", height, width)
    scan = bytes(body).rindex(b"\xff\xda")
    return bytes(body[:scan]) + bytes(body[scan:-2]) * scans + b"\xff\xd9"


_TEXT = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 2**27))
_PROFILE = _chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"\0" * 2**27))

PICTURES: dict[str, Bomb] = {
    "a png of 65 bytes with 169 megapixels": _written("a.png", png(13_000, 13_000)),
    "a png of 4 gigapixels": _written("a.png", png(65_535, 65_535)),
    "a png of 2^62 pixels": _written("a.png", png(2**31 - 1, 2**31 - 1)),
    "a png of 16 bits and 100 megapixels": _written("a.png", png(10_000, 10_000, depth=16, colours=0)),
    "a png with a comment that inflates": _written("a.png", png(8, 8, data=b"\0" * 25 * 8, extra=_TEXT * 4)),
    "a png with a profile that inflates": _written("a.png", png(8, 8, data=b"\0" * 25 * 8, extra=_PROFILE)),
    "a jpeg of 4 gigapixels": _written("a.jpg", jpeg(65_535, 65_535)),
    "a jpeg of 169 megapixels": _written("a.jpg", jpeg(13_000, 13_000)),
    "a jpeg of a thousand scans": _written("a.jpg", jpeg(16, 16, scans=1000)),
}


def _nifti(shape: tuple[int, ...], *, code: int = 4, bits: int = 16, offset: float = 352) -> bytes:
    head = bytearray(352)
    head[:4] = (348).to_bytes(4, "little")
    head[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    head[70:74] = struct.pack("<hh", code, bits)
    head[76:92] = struct.pack("<4f", 1, 1, 1, 1)
    head[108:112] = struct.pack("<f", offset)
    head[252:256] = struct.pack("<hh", 1, 1)
    head[280:328] = struct.pack("<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    head[344:348] = b"n+1\0"
    return bytes(head)


def fine_grid(spacing: float, side: int) -> bytes:
    """A volume of `side`^3 voxels so far apart that it would be huge on the task's grid."""
    head = bytearray(_nifti((side, side, side)))
    head[76:92] = struct.pack("<4f", 1, spacing, spacing, spacing)
    head[280:328] = struct.pack("<12f", spacing, 0, 0, 0, 0, spacing, 0, 0, 0, 0, spacing, 0)
    return bytes(head) + np.arange(side**3, dtype="<i2").tobytes()


VOLUMES: dict[str, Bomb] = {
    "a nifti of 2^45 voxels": _written("a.nii", _nifti((32767, 32767, 32767))),
    "a nifti of 2 gigavoxels in 352 bytes": _written("a.nii", _nifti((1290, 1290, 1290))),
    "a gzipped nifti of 2 gigavoxels in 60 bytes": _written("a.nii.gz", gzip.compress(_nifti((1290, 1290, 1290)))),
    "a gzipped nifti with an endless extension": _written("a.nii.gz", gzip.compress(_nifti((8, 8, 8), offset=2.0**31) + b"\0" * 2**22)),
    "a gzip of zeros": _written("a.nii.gz", gzip.compress(b"\0" * 2**24)),
    "a nifti whose grid has 10^11 voxels": _written("a.nii", fine_grid(50.0, 60)),
    "a nifti with sides of 10^30 mm": _written("a.nii", fine_grid(1e30, 10)),
}


def _datalist(training: str) -> bytes:
    return b'{"training": ' + training.encode() + b', "test": []}'


LISTS: dict[str, Bomb] = {
    "json nested 100,000 deep": _written("a.json", b'{"training": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "json nested 900 deep": _written("a.json", b'{"training": [' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"]}"),
    "json with a number of a million digits": _written("a.json", _datalist('[{"image": "a", "label": ' + "9" * 10**6 + "}]")),
    "json with infinity": _written("a.json", _datalist('[{"image": "a", "label": Infinity}]')),
    "json with NaN": _written("a.json", _datalist('[{"image": "a", "label": NaN}]')),
    "json with half a surrogate": _written("a.json", _datalist(json.dumps([{"image": "\ud800", "label": 0}]))),
    "json with a null byte": _written("a.json", _datalist(json.dumps([{"image": "a\0b", "label": 0}]))),
    "json of utf-16": _written("a.json", "{}".encode("utf-16")),
    "json of no utf-8": _written("a.json", b'{"training": "\xff\xfe"}'),
}

TABLES: dict[str, Bomb] = {
    "a csv of a field of 64 MiB": _written("a.csv", b"image,label\n" + b'"' + b"x" * 2**26 + b'",0\n'),
    "a csv of a million columns": _written("a.csv", b"image,label" + b",x" * 10**6 + b"\n"),
    "a csv that never closes a quote": _written("a.csv", b'image,label\n"a' + b"\nb" * 10**6),
    "a csv of null bytes": _written("a.csv", b"image,label\n\0\0\0,0\n"),
    "a csv of separators": _written("a.csv", b";" * 10**6),
}


def _endless(folder: Path, name: str) -> Path:
    (folder / name).symlink_to("/dev/zero")
    return folder / name


def _pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def _huge(folder: Path, name: str) -> Path:
    with (folder / name).open("wb") as file:
        file.truncate(2**42)  # a sparse file: it takes no room
    return folder / name


NEVER_ENDING: dict[str, Callable[[Path, str], Path]] = {"a device": _endless, "a pipe": _pipe, "a sparse file of 4 TiB": _huge}

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
YAML: dict[str, str] = {
    "a billion laughs": LAUGHS,
    "laughs through merge keys": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)),
    "an alias of itself": "a: &a [*a]\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "a long chain of aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000)),
    "lists nested 100,000 deep": "a: " + "[" * 100_000,
    "mappings nested 5,000 deep": "a: " + "{a: " * 5_000 + "1" + "}" * 5_000,
    "blocks nested 900 deep": "\n".join(" " * i + "a:" for i in range(900)) + " 1\n",
    "a number of 10,000 digits": "rounds: " + "9" * 10_000 + "\n",
    "a month of 99": "name: 2024-99-99\n",
    "an empty number": "name: !!int ''\n",
    "an empty float": "name: !!float ''\n",
    "a truth value that is none": "name: !!bool maybe\n",
    "a tag of python's": "name: !!python/object/apply:os.system ['true']\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "more than a mebibyte": "a: " + "x" * 2**20 + "\n",
    "bytes of control": "name: \x07\n",
    "two documents": "name: a\n---\nname: b\n",
}


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive of members whose headers say what they like."""
    body = b""
    for member, content in members:
        body += member.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512)
    return body + b"\0" * 1024


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, link
    return found


TARS: dict[str, bytes] = {
    "a member of a terabyte": tar((member("a.png", 2**40), b"")),
    "a name of 8 GiB": tar((member("x", 2**33, tarfile.GNUTYPE_LONGNAME), b"")),
    "a gzipped name of 200 MiB": gzip.compress(tar((member("x", 200 * 2**20, tarfile.GNUTYPE_LONGNAME), b"\0" * (200 * 2**20)))),
    "a pax header of 8 GiB": tar((member("x", 2**33, tarfile.XHDTYPE), b"")),
    "a pax header of negative length": tar((member("x", 512, tarfile.XHDTYPE), b"-9 path=a\n".ljust(512, b"\0"))),
    "a chain of a thousand names": tar(*[(member("x", 4, tarfile.GNUTYPE_LONGNAME), b"abc\0")] * 2000),
    "a link out of it": tar((member("a.png", 0, tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "a device": tar((member("a.png", 0, tarfile.CHRTYPE), b"")),
    "a pipe": tar((member("a.png", 0, tarfile.FIFOTYPE), b"")),
    "a sparse member": tar((member("a.png", 2**40, tarfile.GNUTYPE_SPARSE), b"")),
    "no archive": b"\x1f\x8b" + b"\0" * 600,
    "half an archive": tar((member("a.png", 2000), b"\0" * 2000))[:1000],
}
