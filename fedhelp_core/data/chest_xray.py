"""The paediatric chest-X-ray set's own layout: train|val|test / NORMAL|PNEUMONIA / *.jpeg. Called by `datalist.manifest_of`.

The set knows no hospitals: sharing.py deals its patients out, class by class. Files are named person<n>_<germ>_<k>.jpeg for
pneumonia, [NORMAL2-]IM-<n>-<k>.jpeg for normal; all files of a patient fall to the same hospital.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedhelp_core.config.silo import ChestXrayData
from fedhelp_core.data.items import Item
from fedhelp_core.data.sharing import owners
from fedhelp_core.errors import DataError

FOLDERS = {"training": "train", "validation": "val", "test": "test"}
CLASS_FOLDERS = ("NORMAL", "PNEUMONIA")
_SUFFIXES = (".jpeg", ".jpg")
_PATIENT = re.compile(r"^(person\d+|(?:NORMAL2-)?IM-\d+)[_-]")


def read_chest_xray(data: ChestXrayData) -> dict[str, tuple[Item, ...]]:
    """Split -> this hospital's items, in the order of their paths.

    Raises:
        DataError: a folder is missing.
    """
    missing = [f"{data.root / split / label}" for split in FOLDERS.values() for label in CLASS_FOLDERS if not (data.root / split / label).is_dir()]
    if missing:
        raise DataError(
            f"{data.root}: train|val|test / NORMAL|PNEUMONIA expected, but there is no {', '.join(missing)}; correct data.root in silo.yaml")
    return {split: _split(data, split) for split in FOLDERS}


def patient_of(name: str) -> str:
    """The patient in a file's name; the name itself where it follows another scheme."""
    found = _PATIENT.match(name)
    return found.group(1) if found else name


def _split(data: ChestXrayData, split: str) -> tuple[Item, ...]:
    items: list[Item] = []
    for label, folder in enumerate(CLASS_FOLDERS):
        paths = sorted(p for p in (data.root / FOLDERS[split] / folder).iterdir() if _is_image(p))
        owner = owners((patient_of(path.name) for path in paths), data.share.sizes, split)
        items += [Item(path, label) for path in paths if owner[patient_of(path.name)] == data.share.number]
    return tuple(items)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
