"""The paediatric chest-X-ray set's own layout: train|val|test / NORMAL|PNEUMONIA / *.jpeg. Called by `datalist.manifest_of`.

The set knows no hospitals: sharing.py deals its patients out, class by class. Files are named person<n>_<germ>_<k>.jpeg for pneumonia,
[NORMAL2-]IM-<n>-<k>.jpeg for normal. Persons are numbered by germ, anew for each: person100_virus and person100_bacteria are two
(docs/data.md says what speaks for that), as IM-0115 and NORMAL2-IM-0115 are.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.items import Item
from fedhelp_core.data.names import files_in, plain
from fedhelp_core.data.picture_files import SUFFIXES
from fedhelp_core.errors import DataError

FOLDERS = {"training": "train", "validation": "val", "test": "test"}
CLASS_FOLDERS = ("NORMAL", "PNEUMONIA")
NUMBERED = TaskConfig(name="pneumonia").classes
"""What the folders mean, in their order."""
_PATIENT = re.compile(r"^(person\d+_[a-z]+|(?:NORMAL2-)?IM-\d+)[_-]")


def read_chest_xray(root: Path) -> tuple[dict[str, tuple[Item, ...]], dict[Path, str], list[str], list[str]]:
    """Split -> items, in the order of their paths; image -> its patient; what is wrong; what was left alone.

    Raises:
        DataError: a folder is missing.
    """
    missing = [f"{root / split / label}" for split in FOLDERS.values() for label in CLASS_FOLDERS if not (root / split / label).is_dir()]
    if missing:
        raise DataError(
            f"{root}: train|val|test / NORMAL|PNEUMONIA expected, but there is no {', '.join(missing)}; correct data.root in silo.yaml")
    parts: dict[str, tuple[Item, ...]] = {}
    problems: list[str] = []
    notes: list[str] = []
    for split, folder in FOLDERS.items():
        items: list[Item] = []
        for label, class_folder in enumerate(CLASS_FOLDERS):
            found, wrong, left = files_in(root / folder / class_folder, SUFFIXES)
            problems += wrong
            notes += left
            items += [Item(path, label) for path in found.values()]
        parts[split] = tuple(items)
    return parts, {item.image: patient_of(plain(item.image.name)) for items in parts.values() for item in items}, problems, notes


def patient_of(name: str) -> str:
    """The patient in a file's name; the name itself where it follows another scheme."""
    found = _PATIENT.match(name)
    return found.group(1) if found else name
