"""Files by the names that people give them. Called by the layouts.

One name can be written in several ways: a letter with its accent as one sign or two (NFC, NFD), an ending in capitals, backslashes from Windows.
A file is found whichever way a list has it; where two files answer to one name, or a name is no text, that is a problem and never a guess.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from fedhelp_core.data.unusable import Unusable

_OTHER_IMAGES = (
    ".bmp", ".dcm", ".dicom", ".gif", ".hdr", ".heic", ".img", ".jfif", ".jp2", ".jpeg", ".jpg", ".mgh", ".mgz", ".mha", ".mhd", ".mnc", ".nhdr",
    ".nii", ".nii.gz", ".nrrd", ".par", ".png", ".tif", ".tiff", ".webp")
"""Endings of files that somebody meant to be used."""
_SHOWN = 5


def plain(name: str) -> str:
    """`name` with every letter one sign (NFC), so that equal names are equal."""
    return unicodedata.normalize("NFC", name)


def shown(name: str | os.PathLike[str]) -> str:
    """`name` for people: what is no text as \\xe4."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_text(name: str | os.PathLike[str]) -> bool:
    """Whether `name` is UTF-8."""
    return not any("\ud800" <= sign <= "\udfff" for sign in os.fspath(name))


def not_text(path: Path) -> str:
    """The problem of a `path` whose name is no text."""
    return f"{shown(path)}: its name is not UTF-8, as old Windows and Latin-1 names are; rename it (convmv -f latin1 -t utf8)"


def ending_of(name: str, endings: Iterable[str]) -> str | None:
    """Which of `endings` (lower case) the file's name has, in small letters or capitals."""
    return next((ending for ending in sorted(endings, key=len, reverse=True) if name.lower().endswith(ending)), None)


def files_in(folder: Path, endings: Iterable[str], *, folders: bool = False) -> tuple[dict[str, Path], list[str], list[str]]:
    """Files of these `endings` (and, if asked for, folders) by their plain name without it; problems; notes. In the order of names.

    Hidden ones are passed over. Another image is a problem, for somebody meant it to be used; what is no image is a note.
    """
    found: dict[str, Path] = {}
    problems: list[str] = []
    others: list[str] = []
    endings = tuple(endings)
    for path in sorted(folder.iterdir()):
        ending = ending_of(path.name, endings)
        if path.name.startswith(".") or (path.is_dir() and not folders and ending is None):
            continue
        if not is_text(path):
            problems.append(not_text(path))
        elif ending is None and not path.is_dir():
            if ending_of(path.name, _OTHER_IMAGES):
                problems.append(f"{path}: is left out, for only {', '.join(endings)} are read here; convert it, or remove it")
            else:
                others.append(path.name)
        else:
            name = plain(path.name[: len(path.name) - len(ending or "")])
            if name in found:
                problems.append(f"{path}: has the same name as {found[name].name}, so nobody knows which is meant; remove one of them")
            else:
                found[name] = path
    shown_others = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return found, problems, [f"{folder}: no images, left alone: {shown_others}"] if others else []


class Finder:
    """Finds the files that lists name; each folder is listed once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, folder: Path, name: str) -> Path:
        """The file `name` below `folder`; as it is written, where there is none.

        Raises:
            Unusable: several files answer to the name, or the one that does has a name that is no text.
        """
        if not is_text(name):
            raise Unusable(not_text(folder / name))
        exact = folder / name
        if exact.exists() or exact.is_symlink():
            return exact
        place = folder
        for part in Path(name).parts:
            candidates = self._listed(place).get(_key(part), [])
            if len(candidates) > 1:
                names = " and ".join(shown(path.name) for path in candidates[:2])
                raise Unusable(f"{exact}: is not there, and {names} both come near it; correct the list")
            if not candidates:
                return exact
            place = candidates[0]
            if not is_text(place):
                raise Unusable(not_text(place))
        return place

    def _listed(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._folders:
            found: dict[str, list[Path]] = {}
            try:
                for path in sorted(folder.iterdir()):
                    found.setdefault(_key(path.name), []).append(path)
            except OSError:
                pass
            self._folders[folder] = found
        return self._folders[folder]


def _key(name: str) -> str:
    """One for all ways to write a name: NFC, its ending in small letters; bytes that are no UTF-8 as Latin-1."""
    if not is_text(name):
        name = os.fsencode(name).decode("latin-1")
    stem, dot, ending = plain(name).rpartition(".")
    return f"{stem}{dot}{ending.lower()}" if dot else ending
