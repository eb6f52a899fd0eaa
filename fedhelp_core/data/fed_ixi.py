"""Fed-IXI's own layout: <subject>/T1/*.nii.gz and <subject>/label/*.nii.gz, and FLamby's split CSV. Called by `datalist.manifest_of`.

A subject's folder names its number and hospital: IXI002-Guys-0828. Subjects that the CSV does not list are left out, as in the benchmark.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from fedhelp_core.config.silo import FedIxiData
from fedhelp_core.data.csv_files import Table
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.errors import DataError

PATIENT, SPLIT = "Patient ID", "Split"
_SUBJECT = re.compile(r"^IXI(\d+)-(Guys|HH|IOP)(-\w+)?$")
_NIFTI = (".nii.gz", ".nii")


def read_fed_ixi(data: FedIxiData) -> tuple[dict[str, tuple[Item, ...]], dict[Path, str], list[str]]:
    """Split -> this hospital's items, by subject; image -> its subject; and what is wrong.

    Raises:
        DataError: no folder, no CSV, or no subject of this hospital.
    """
    if not data.root.is_dir():
        raise DataError(f"{data.root}: no such folder of subjects; correct data.root in silo.yaml")
    split = _splits(data.split_csv)
    found: dict[str, list[Item]] = {name: [] for name in SPLITS}
    subjects: dict[Path, str] = {}
    problems = []
    for folder in sorted(p for p in data.root.iterdir() if p.is_dir()):
        name = _SUBJECT.match(folder.name)
        if name is None or name.group(2) != data.hospital or int(name.group(1)) not in split:
            continue
        image, mask = _only_file(folder / "T1"), _only_file(folder / "label")
        problems += [one for one in (image, mask) if isinstance(one, str)]
        if isinstance(image, Path) and isinstance(mask, Path):
            found["test" if split[int(name.group(1))] == "test" else "training"].append(Item(image, mask=mask))
            subjects[image] = folder.name
    if not problems and not any(found.values()):
        raise DataError(
            f"{data.root}: no subject folder like IXI002-{data.hospital}-0828 that {data.split_csv.name} lists; correct data.root or data.hospital")
    return {name: tuple(items) for name, items in found.items()}, subjects, problems


def _only_file(folder: Path) -> Path | str:
    """The one NIfTI file in `folder`, or what is wrong."""
    files = sorted(p for p in folder.glob("*") if p.name.lower().endswith(_NIFTI) and p.name[0] != ".") if folder.is_dir() else []
    return files[0] if len(files) == 1 else f"{folder}: one NIfTI file expected, found {len(files)}; add it, or remove the subject"


def _splits(path: Path) -> dict[int, str]:
    """Patient's number -> train or test."""
    table = Table(path, {PATIENT: PATIENT, SPLIT: SPLIT}, needed=(PATIENT, SPLIT), what="split CSV", next_step="correct data.split_csv in silo.yaml")
    rows = list(table.rows())
    wrong = [line for line, row, problem in rows if problem or not row[PATIENT].isdecimal() or row[SPLIT] not in ("train", "test")]
    if wrong:
        raise DataError(f"{path}: line {wrong[0]}: a patient's number and train or test expected")
    numbers = [int(row[PATIENT]) for _, row, _ in rows]
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise DataError(f"{path}: patient {twice[0]} is listed more than once; list each once")
    return dict(zip(numbers, (row[SPLIT] for _, row, _ in rows), strict=True))
