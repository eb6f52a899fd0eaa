"""Where public images come from: a folder, CIFAR's binary files, tar shards, a datalist. Called by `public_images` alone.

Every source gives `Source`s in an order that depends on names alone; each knows how to read its own bytes, and is known by
their sha256: of a file's or tar member's bytes, of a CIFAR row's pixels. Everything here is untrusted: sizes are bounded,
links and paths out of the folder are refused, nothing is unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.data.public import Preparation, Prepared, Wanted
from fedhelp_core.errors import DataError

MAX_IMAGE_BYTES = 256 * 2**20
_CIFAR_SIDE = 32
_CIFAR_PIXELS = 3 * _CIFAR_SIDE**2
_MAX_DATALIST_BYTES = 512 * 2**20
_BROKEN_TAR = (tarfile.TarError, OSError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class Source:
    """One image, not decoded yet."""

    name: str
    """File, or file and place in it: for messages."""
    prepared: Callable[[Wanted], Prepared]
    """The image, if its sha256 is wanted; what is wrong with it is a problem in the result, no exception."""


def open_sources(images: Path, layout: str, preparation: Preparation) -> Iterator[Source]:
    """The images at `images`, which `config.PublicSetConfig.layout` says how to find and `preparation` how to read.

    Raises:
        DataError: nothing is there, or it is not of this layout.
    """
    if not images.exists():
        raise DataError(f"public_set.images: {images} does not exist; give the public images, as public_set.layout says")
    return _LAYOUTS[layout](images, preparation)


def _folder(folder: Path, preparation: Preparation) -> Iterator[Source]:
    if not folder.is_dir():
        raise DataError(f"public_set.images: {folder} is not a folder; give the folder of public images, or set public_set.layout")
    for inside, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(inside, name)
            if _is_image(name, preparation) and os.path.isfile(path):
                yield Source(path, partial(preparation.of_file, Path(path)))


def _is_image(name: str, preparation: Preparation) -> bool:
    return name.lower().endswith(preparation.suffixes) and not name.startswith(".")


def _cifar(label_bytes: int) -> Callable[[Path, Preparation], Iterator[Source]]:
    """Rows of `label_bytes` labels, which nobody looks at, and 3 x 32 x 32 pixels."""
    row_bytes = label_bytes + _CIFAR_PIXELS

    def rows(images: Path, preparation: Preparation) -> Iterator[Source]:
        for path in _files(images, (".bin",)):
            size = path.stat().st_size
            if size == 0 or size % row_bytes:
                raise DataError(f"{path}: {size} bytes, a multiple of {row_bytes} expected; is it the binary version, and layout right?")
            with path.open("rb") as file:
                for number in range(size // row_bytes):
                    pixels = file.read(row_bytes)[label_bytes:]
                    name = f"{path}[{number}]"
                    yield Source(name, partial(_cifar_image, pixels, name, preparation))

    return rows


def _cifar_image(pixels: bytes, name: str, preparation: Preparation, wanted: Wanted) -> Prepared:
    image: NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(1, 2, 0)
    return preparation.of_pixels(np.ascontiguousarray(image), hashlib.sha256(pixels).hexdigest(), name, wanted)


def _tar(images: Path, preparation: Preparation) -> Iterator[Source]:
    for path in _files(images, (".tar", ".tar.gz", ".tgz")):
        try:
            with tarfile.open(path, "r|*") as archive:  # as a stream: members are never sought, links never followed
                for member in archive:
                    if not member.isfile() or not _is_image(Path(member.name).name, preparation):
                        continue
                    label = f"{path}:{member.name}"
                    if member.size > MAX_IMAGE_BYTES:
                        raise DataError(f"{label}: holds {member.size} bytes, an image of at most {MAX_IMAGE_BYTES} expected; remove it")
                    content = archive.extractfile(member)
                    raw = content.read() if content is not None else b""
                    yield Source(label, partial(preparation.of_bytes, raw, label))
        except _BROKEN_TAR as e:
            raise DataError(f"{path}: cannot be read as a tar file ({e}); replace it") from e


def _datalist(path: Path, preparation: Preparation) -> Iterator[Source]:
    """Every `image` of every list in the JSON file; paths are relative to its folder and stay inside it."""
    root = path.parent.resolve()
    for number, entry in enumerate(_entries(path)):
        written = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(written, str):
            raise DataError(f"{path}: entry {number}: {{\"image\": path}} expected, got {str(entry)[:80]!r}")
        image = (root / written).resolve()
        if not image.is_relative_to(root):
            raise DataError(f"{path}: entry {number}: {written!r} is outside {root}; list images below the datalist's folder")
        yield Source(str(image), partial(preparation.of_file, image))


def _entries(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > _MAX_DATALIST_BYTES:
            raise DataError(f"{path}: is larger than {_MAX_DATALIST_BYTES} bytes; is it a datalist?")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(f"{path}: cannot be read as JSON ({e}); a datalist expected: lists of {{\"image\": path}}") from e
    lists = [document] if isinstance(document, list) else [v for v in document.values() if isinstance(v, list)] if isinstance(document, dict) else []
    entries = [entry for found in lists for entry in found]
    if not entries:
        raise DataError(f"{path}: no list of {{\"image\": path}} in it; a MONAI datalist expected")
    return entries


def _files(images: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """`images` itself, or the files with these endings in it, by name."""
    if images.is_file():
        return [images]
    found = sorted(p for p in images.iterdir() if p.name.lower().endswith(suffixes) and not p.name.startswith(".") and p.is_file())
    if not found:
        raise DataError(f"{images}: at least one file {' or '.join('*' + s for s in suffixes)} expected, found none; correct public_set.images")
    return found


_LAYOUTS: dict[str, Callable[[Path, Preparation], Iterator[Source]]] = {
    "folder": _folder, "cifar10": _cifar(1), "cifar100": _cifar(2), "tar": _tar, "datalist": _datalist,
}
