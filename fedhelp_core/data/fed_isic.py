"""Fed-ISIC2019's own layout: a folder of <image>.jpg and FLamby's split CSV (image, target, center, fold, fold2).

Called by `datalist.manifest_of`. The real folder is read unchanged; further columns are ignored. The benchmark has no
validation fold, so a share of the training fold is held out, chosen by the hash of the image's name: the same images are
held out on every machine, and adding images moves none.
"""

from __future__ import annotations

import csv
from pathlib import Path

from fedhelp_core.config.silo import FedIsicData
from fedhelp_core.data.items import Item
from fedhelp_core.data.sharing import share_of_name
from fedhelp_core.errors import DataError

COLUMNS = ("image", "target", "center", "fold", "fold2")
_NEEDED = COLUMNS[:4]

Splits = tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...], list[str]]


def read_fed_isic(data: FedIsicData) -> Splits:
    """(training, validation, test, problems) of one center, in the CSV's order.

    Raises:
        DataError: no CSV, no folder, a column is missing, or the center has no row.
    """
    if not data.images.is_dir():
        raise DataError(f"{data.images}: no such folder of images; correct data.images in silo.yaml")
    rows = _rows_of_center(data)
    splits: dict[str, list[Item]] = {"training": [], "validation": [], "test": []}
    problems: list[str] = []
    for line, row in rows:
        where = f"{data.split_csv}: line {line}"
        item = _item(row, data.images)
        if isinstance(item, str):
            problems.append(f"{where}: {item}")
        elif row["fold"] == "test":
            splits["test"].append(item)
        elif row["fold"] == "train":
            held_out = share_of_name(row["image"]) < data.validation_fraction
            splits["validation" if held_out else "training"].append(item)
        else:
            problems.append(f"{where}: fold should be train or test, got {row['fold']!r}")
    return tuple(splits["training"]), tuple(splits["validation"]), tuple(splits["test"]), problems


def centers_in(split_csv: Path) -> list[int]:
    """The centers that have rows, in order.

    Raises:
        DataError: no such CSV, or a column is missing.
    """
    return sorted({number for _, row in _rows(split_csv) if (number := _number(row["center"])) is not None and number >= 0})


def _rows_of_center(data: FedIsicData) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of the center's rows."""
    rows = _rows(data.split_csv)
    ours = [(line, row) for line, row in rows if _number(row["center"]) == data.center]
    if not ours:
        centers = sorted({row["center"] for _, row in rows})[:20]
        found = ", ".join(centers) or "none"
        raise DataError(f"{data.split_csv}: no row has center {data.center} (data.center in silo.yaml); centers found: {found}")
    return ours


def _rows(split_csv: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row."""
    try:
        with split_csv.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise DataError(f"{split_csv}: columns {', '.join(_NEEDED)} expected, but {', '.join(missing)} missing (found {found})")
            return [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k in COLUMNS}) for row in reader]
    except FileNotFoundError as e:
        raise DataError(f"{split_csv}: no such split CSV; correct data.split_csv in silo.yaml") from e
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{split_csv}: cannot be read as CSV ({e})") from e


def _item(row: dict[str, str], images: Path) -> Item | str:
    name = row["image"]
    if not name or "/" in name or "\\" in name or name.startswith("."):
        return f"image should be a plain file name without .jpg, got {name!r}"
    label = _number(row["target"])
    if label is None:
        return f"target should be a class number, got {row['target']!r}"
    return Item(images / f"{name}.jpg", label)


def _number(text: str) -> int | None:
    """Whole number of '3' and of '3.0', as spreadsheets write it."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None

