"""The paediatric chest-X-ray set's own layout: train|val|test / NORMAL|PNEUMONIA / *.jpeg. Called by `datalist.manifest_of`.

The set knows no hospitals: sharing.py deals its patients out, class by class. Files are named person<n>_<germ>_<k>.jpeg for
pneumonia, [NORMAL2-]IM-<n>-<k>.jpeg for normal; all files of a patient fall to the same hospital.
"""

from __future__ import annotations

import re

from fedhelp_core.config.silo import ChestXrayData
from fedhelp_core.data.items import Item
from fedhelp_core.data.names import files_in, plain
from fedhelp_core.data.picture_files import SUFFIXES
from fedhelp_core.data.sharing import owners
from fedhelp_core.errors import DataError

FOLDERS = {"training": "train", "validation": "val", "test": "test"}
CLASS_FOLDERS = ("NORMAL", "PNEUMONIA")
_PATIENT = re.compile(r"^(person\d+|(?:NORMAL2-)?IM-\d+)[_-]")


def read_chest_xray(data: ChestXrayData) -> tuple[dict[str, tuple[Item, ...]], list[str], list[str]]:
    """Split -> this hospital's items, in the order of their paths; what is wrong; what was left alone.

    Raises:
        DataError: a folder is missing.
    """
    missing = [f"{data.root / split / label}" for split in FOLDERS.values() for label in CLASS_FOLDERS if not (data.root / split / label).is_dir()]
    if missing:
        raise DataError(
            f"{data.root}: train|val|test / NORMAL|PNEUMONIA expected, but there is no {', '.join(missing)}; correct data.root in silo.yaml")
    problems: list[str] = []
    notes: list[str] = []
    return {split: _split(data, split, problems, notes) for split in FOLDERS}, problems, notes


def patient_of(name: str) -> str:
    """The patient in a file's name; the name itself where it follows another scheme."""
    found = _PATIENT.match(name)
    return found.group(1) if found else name


def _split(data: ChestXrayData, split: str, problems: list[str], notes: list[str]) -> tuple[Item, ...]:
    items: list[Item] = []
    for label, folder in enumerate(CLASS_FOLDERS):
        found, wrong, left = files_in(data.root / FOLDERS[split] / folder, SUFFIXES)
        problems += wrong
        notes += left
        patients = {path: patient_of(plain(path.name)) for path in found.values()}
        owner = owners(patients.values(), data.share.sizes, split)
        items += [Item(path, label) for path, patient in patients.items() if owner[patient] == data.share.number]
    return tuple(items)
