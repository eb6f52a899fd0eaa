"""A hospital's own list: CSV with a row an image. Called by `public_layouts`.

    image,label,split,patient,hospital
    2024/0001.jpg,nevus,training,P17,charite

`label` is the class, by name or number; tasks with masks take `mask`, the mask's path, instead. `split`, `patient`, `lesion` and `hospital` may
be missing: then patients (lesions, images, where there are none) are held out for the test by the hash of their names, and all images are one
hospital's. Further columns are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.csv_files import Row, Table
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import Finder, plain
from fedhelp_core.data.sharing import is_test
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.errors import DataError
from fedhelp_core.registry.tasks import NOT_LABELLED

_FINDING = {"": NOT_LABELLED, "-1": NOT_LABELLED, "0": 0, "1": 1, "no": 0, "yes": 1, "false": 0, "true": 1}
COLUMNS = ("image", "label", "mask", "split", "patient", "lesion", "hospital")
_SPLIT_WORDS = {"train": "training", "training": "training", "val": "validation", "valid": "validation", "validation": "validation",
                "test": "test", "testing": "test"}


@dataclass
class Listed:
    """What the rows of one hospital say."""

    splits: dict[str, list[Item]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    subjects: dict[Path, str] = field(default_factory=dict)
    """Image -> its patient, else its lesion, else itself as the list writes it."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a CSV is read."""

    task: TaskConfig
    folder: Path
    """What paths in the CSV are relative to."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> the CSV's, where it is another."""
    test_fraction: float = 0.2
    finder: Finder = field(default_factory=Finder)


def read_own_csv(path: Path, reading: Reading) -> dict[str, Listed]:
    """Hospital (as the CSV calls it, '' without such a column) -> its images.

    Raises:
        DataError: no such file, none that is a CSV, or its columns are not clear.
    """
    answers = _answer_columns(reading.task)
    if reading.task.form == "labels" and (clash := sorted({*answers} & {*COLUMNS})):
        raise DataError(f"{path}: task.classes has a finding called {clash[0]!r}, which is what another column of a list is called; rename it")
    names = {ours: reading.columns.get(ours, ours) for ours in columns_of(reading.task)}
    asked = [ours for ours in names if ours in ("image", *answers) or ours in reading.columns]
    try:
        table = Table(path, names, needed=asked, next_step="give its path with --csv")
    except DataError as e:
        raise DataError([f"{problem}; name yours with --columns, e.g. image=File" if " missing (found" in problem else problem
                         for problem in e.problems]) from e
    hospitals: dict[str, Listed] = {}
    nameless: list[str] = []
    for line, row, wrong in table.rows():
        problem = wrong or ("hospital is empty" if row.get("hospital") == "" else None)
        if problem is not None:
            nameless.append(f"{path}: line {line}: {problem}")
            continue
        listed = hospitals.setdefault(row.get("hospital", ""), Listed())
        try:
            item, subject = _item(row, reading), row.get("patient") or row.get("lesion") or row["image"]
            split = _split(row, subject, reading)
        except Unusable as e:
            listed.problems.append(f"{path}: line {line}: {e}")
            continue
        listed.splits[split].append(item)
        listed.subjects[item.image] = subject if subject == row["image"] or "hospital" not in row else f"{row['hospital']}/{subject}"
    if nameless and not hospitals:
        raise DataError(nameless[:1] if len(nameless) == 1 else [*nameless[:1], f"{path}: {len(nameless) - 1} more rows like it"])
    if hospitals:
        next(iter(hospitals.values())).problems[:0] = nameless
    for listed in hospitals.values():
        listed.notes = table.notes
    return hospitals


def columns_of(task: TaskConfig) -> tuple[str, ...]:
    """Our names of all columns that a list of this task may have."""
    return tuple(dict.fromkeys((*COLUMNS, *_answer_columns(task), *_sequence_columns(task))))


def _answer_columns(task: TaskConfig) -> tuple[str, ...]:
    """What has to be in a row beside the image: of findings a column for each, by its name."""
    return ("mask",) if task.per_pixel else task.classes if task.form == "labels" else ("label",)


def _sequence_columns(task: TaskConfig) -> tuple[str, ...]:
    """Columns of an image's further sequences, where each is a file of its own."""
    return tuple(f"image_{number}" for number in range(2, task.channels + 1)) if task.dimensions == 3 else ()


def _item(row: Row, reading: Reading) -> Item:
    answers = _answer_columns(reading.task)
    for column in ("image", *(answers if reading.task.form != "labels" else ())):
        if not row[column]:
            raise Unusable(f"{column} is empty")
    image = _below(row["image"], "image", reading)
    sequences = tuple(_below(row[name], name, reading) for name in _sequence_columns(reading.task) if row.get(name))
    if reading.task.form == "labels":
        return Item(image, sequences=sequences, findings=tuple(_finding(row[name], name) for name in answers))
    if reading.task.per_pixel:
        return Item(image, mask=_below(row["mask"], "mask", reading), sequences=sequences)
    return Item(image, _label(row["label"], reading.task.classes))


def _below(name: str, column: str, reading: Reading) -> Path:
    """The file that a cell names; Windows writes backslashes."""
    if "\\" in name and not (reading.folder / name).exists():
        name = name.replace("\\", "/")
    parts = Path(name)
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", name):
        raise Unusable(f"{column} should lie below {reading.folder}, got {name!r}")
    return reading.finder.find(reading.folder, name)


def _label(text: str, classes: Sequence[str]) -> int:
    same = [number for number, name in enumerate(classes) if plain(name) == text]
    same = same or [number for number, name in enumerate(classes) if plain(name).casefold() == text.casefold()]
    if len(same) == 1:
        return same[0]
    digits = re.fullmatch(r"(\d+)(\.0*)?", text)  # spreadsheets write 1 as 1.0
    if digits is None or int(digits[1]) >= len(classes):
        raise Unusable(f"label should be one of {', '.join(classes)} or its number from 0, got {text!r}")
    return int(digits[1])


def _finding(text: str, name: str) -> int:
    """0, 1, or NOT_LABELLED of an empty cell and of CheXpert's -1, which stands for uncertain."""
    found = _FINDING.get(text.casefold().removesuffix(".0"))
    if found is None:
        raise Unusable(f"{name} should be 0, 1 or empty (not labelled), got {text[:40]!r}")
    return found


def _split(row: Row, subject: str, reading: Reading) -> str:
    if "split" in row:
        split = _SPLIT_WORDS.get(row["split"].casefold())
        if split is None:
            raise Unusable(f"split should be training, validation or test, got {row['split']!r}")
        return split
    return "test" if is_test(subject, reading.test_fraction) else "training"
