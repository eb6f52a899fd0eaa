"""Where public images come from: a folder, CIFAR's binary files, tar shards, a datalist. Called by `public_images` alone.

Every source gives `Source`s in an order that depends on names alone; each knows how to read its own bytes, and is known by
their sha256: of a file's or tar member's bytes, of a CIFAR row's pixels. Everything here is untrusted: sizes are bounded,
links and paths out of the folder are refused, nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.budget import MOST_ARCHIVE_HEADER_BYTES, MOST_LIST_BYTES, MOST_PICTURE_BYTES, MOST_VOLUME_BYTES, foreign, json_in, regular_bytes
from fedhelp_core.data.public import Preparation, Prepared, Wanted
from fedhelp_core.errors import DataError

_CIFAR_SIDE = 32
_CIFAR_PIXELS = 3 * _CIFAR_SIDE**2
_GZIP = b"\x1f\x8b"
_MOST_RATIO = 100  # bytes of members for one of a gzipped archive, beyond the first GiB: pictures are compressed already
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


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
        members = _members(path, preparation)
        while True:
            with foreign(partial(_no_tar, path), DataError):
                found = next(members, None)
            if found is None:
                break
            label, raw = found
            yield Source(label, partial(preparation.of_bytes, raw, label))


def _no_tar(path: Path, why: str) -> DataError:
    return DataError(f"{path}: cannot be read as a tar file ({why}); replace it")


class _Member(tarfile.TarInfo):
    """A member of bounded length: tarfile reads a long name, and passes over what it does not read, as far as the header says."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        most = MOST_ARCHIVE_HEADER_BYTES if self.type in _LONG_NAMES else MOST_VOLUME_BYTES
        if not 0 <= self.size <= most or self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"a member or name of {self.size:,} bytes, or with holes")
        return super()._proc_member(archive)  # type: ignore[misc]  # tarfile calls it so; typeshed leaves it out


def _members(path: Path, preparation: Preparation) -> Iterator[tuple[str, bytes]]:
    """Name and content of each image in the archive."""
    with path.open("rb") as file:
        gzipped = file.read(2) == _GZIP
    most = path.stat().st_size * _MOST_RATIO + 2**30 if gzipped else path.stat().st_size
    passed = 0
    with tarfile.open(path, "r|gz" if gzipped else "r|", tarinfo=_Member) as archive:  # a stream: nothing is sought, links are never followed
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every one of them
            passed += member.size
            if passed > most:
                raise _no_tar(path, f"its members have more than {most:,} bytes together")
            if not member.isfile() or member.issparse() or not _is_image(Path(member.name).name, preparation):
                continue
            label = f"{path}:{member.name}"
            if member.size > MOST_PICTURE_BYTES:
                raise DataError(f"{label}: holds {member.size} bytes, an image of at most {MOST_PICTURE_BYTES} expected; remove it")
            content = archive.extractfile(member)
            yield label, content.read() if content is not None else b""


def _datalist(path: Path, preparation: Preparation) -> Iterator[Source]:
    """Every `image` of every list in the JSON file; paths are relative to its folder and stay inside it."""
    root = path.parent.resolve()
    for number, entry in enumerate(_entries(path)):
        written = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(written, str):
            raise DataError(f"{path}: entry {number}: {{\"image\": path}} expected, got {str(entry)[:80]!r}")
        with foreign(partial(_no_name, path, number)):
            image = (root / written).resolve()
        if not image.is_relative_to(root):
            raise DataError(f"{path}: entry {number}: {written!r} is outside {root}; list images below the datalist's folder")
        yield Source(str(image), partial(preparation.of_file, image))


def _no_name(path: Path, number: int, why: str) -> DataError:
    return DataError(f"{path}: entry {number}: no file can have this name ({why})")


def _entries(path: Path) -> list[Any]:
    def wrong(why: str) -> DataError:
        return DataError(f"{path}: cannot be read as JSON ({why}); a datalist expected: lists of {{\"image\": path}}")

    try:
        document = json_in(regular_bytes(path, MOST_LIST_BYTES, wrong), wrong)
    except OSError as e:
        raise wrong(str(e)) from e
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
