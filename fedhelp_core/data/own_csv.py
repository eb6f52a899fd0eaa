"""A hospital's own list: CSV with a row an image. Called by `public_layouts`.

    image,label,split,patient,hospital
    2024/0001.jpg,nevus,training,P17,charite

`label` is the class, by name or number; tasks with masks take `mask`, the mask's path, instead. `split`, `patient` and `hospital` may be
missing: then patients (images, where there are none) are put into splits by the hash of their names, and all images are one hospital's.
Further columns are ignored; semicolons do as well as commas.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.sharing import split_of_name
from fedhelp_core.errors import DataError
from fedhelp_core.registry.tasks import TASKS

COLUMNS = ("image", "label", "mask", "split", "patient", "hospital")
_SPLIT_WORDS = {"train": "training", "training": "training", "val": "validation", "valid": "validation", "validation": "validation",
                "test": "test", "testing": "test"}
_Row = tuple[int, dict[str, str]]


@dataclass
class Listed:
    """What the rows of one hospital say."""

    splits: dict[str, list[Item]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    patients: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a CSV is read."""

    task: TaskConfig
    folder: Path
    """What paths in the CSV are relative to."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name of a column -> the CSV's, where it is another."""
    test_fraction: float = 0.2
    validation_fraction: float = 0.0


def read_own_csv(path: Path, reading: Reading) -> dict[str, Listed]:
    """Hospital (as the CSV calls it, '' without such a column) -> its images.

    Raises:
        DataError: no such file, or a column is missing.
    """
    answer = "mask" if TASKS[reading.task.name].answer == "mask" else "label"
    hospitals: dict[str, Listed] = {}
    for line, row in _rows(path, reading.columns, needed=("image", answer)):
        listed = hospitals.setdefault(row.get("hospital", ""), Listed())
        item = _item(row, answer, reading)
        split = _split(row, reading)
        for problem in (one for one in (item, split) if isinstance(one, _Problem)):
            listed.problems.append(f"{path}: line {line}: {problem.sentence}")
        if isinstance(item, Item) and isinstance(split, str):
            listed.splits[split].append(item)
            if row.get("patient"):
                listed.patients[item.image] = row["patient"]
    return hospitals


@dataclass(frozen=True)
class _Problem:
    sentence: str


def _rows(path: Path, columns: Mapping[str, str], *, needed: Sequence[str]) -> list[_Row]:
    """(line number, row by our names) of every row."""
    names = {ours: columns.get(ours, ours) for ours in COLUMNS}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=";" if head.count(";") > head.count(",") else ",")
            found = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = found
            wanted = dict.fromkeys([*(names[one] for one in needed), *columns.values()])
            missing = [name for name in wanted if name not in found]
            if missing:
                raise DataError(
                    f"{path}: columns {', '.join(wanted)} expected, but {', '.join(missing)} missing (found {', '.join(found) or 'none'});"
                    " name yours with --columns, e.g. image=File")
            return [(reader.line_num, {ours: (row[theirs] or "").strip() for ours, theirs in names.items() if theirs in found}) for row in reader]
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such CSV; give its path with --csv") from e
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: cannot be read as CSV ({e}); save it as UTF-8 with commas") from e


def _item(row: Mapping[str, str], answer: str, reading: Reading) -> Item | _Problem:
    for column in ("image", answer):
        if not row[column]:
            return _Problem(f"{column} is empty")
    image = _below(row["image"], reading.folder)
    if answer == "mask":
        mask = _below(row["mask"], reading.folder)
        return Item(image, mask=mask) if image and mask else _Problem(f"image and mask should lie below {reading.folder}")
    label = _label(row["label"], reading.task.classes)
    if label is None:
        return _Problem(f"label should be one of {', '.join(reading.task.classes)} or its number from 0, got {row['label']!r}")
    return Item(image, label) if image else _Problem(f"image should lie below {reading.folder}, got {row['image']!r}")


def _below(name: str, folder: Path) -> Path | None:
    parts = Path(name)
    return None if parts.is_absolute() or ".." in parts.parts else folder / parts


def _label(text: str, classes: Sequence[str]) -> int | None:
    names = [name.casefold() for name in classes]
    if text.casefold() in names:
        return names.index(text.casefold())
    return int(text) if text.isdecimal() and int(text) < len(classes) else None


def _split(row: Mapping[str, str], reading: Reading) -> str | _Problem:
    if "split" in row:
        split = _SPLIT_WORDS.get(row["split"].casefold())
        return split or _Problem(f"split should be training, validation or test, got {row['split']!r}")
    return split_of_name(row.get("patient") or row["image"], test=reading.test_fraction, validation=reading.validation_fraction)
