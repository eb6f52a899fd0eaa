"""Fed-ISIC2019's own layout: a folder of <image>.jpg and FLamby's split CSV (image, target, center, fold, fold2).

Called by `datalist.manifest_of`. The real folder is read unchanged; further columns are ignored, but for `patient` and `lesion`, which say
which images show the same. FLamby's file has neither: of HAM10000's images HAM10000_metadata.csv (lesion_id, image_id) tells.
"""

from __future__ import annotations

from pathlib import Path

from fedhelp_core.config.silo import FedIsicData
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.data.csv_files import Row, Table
from fedhelp_core.data.items import Item
from fedhelp_core.data.names import Finder
from fedhelp_core.data.unusable import Unusable
from fedhelp_core.errors import DataError

COLUMNS = ("image", "target", "center", "fold", "fold2")
_NEEDED = COLUMNS[:4]
_SUBJECTS = ("patient", "lesion")  # a patient may have several lesions
_LESIONS = {"image": "image_id", "lesion": "lesion_id"}
NUMBERED = TaskConfig(name="melanoma").classes
"""What the CSV's targets mean."""
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata")
"""What HAM10000 and FLamby call the table of its lesions."""


def read_fed_isic(data: FedIsicData) -> tuple[dict[str, tuple[Item, ...]], dict[Path, str], list[str]]:
    """Split -> items of one center, in the CSV's order; image -> the patient or lesion that it shows, where one is told; what is wrong.

    Raises:
        DataError: no CSV, no folder, a column is missing, or the center has no row.
    """
    if not data.images.is_dir():
        raise DataError(f"{data.images}: no such folder of images; correct data.images in silo.yaml")
    rows = _rows_of_center(data)
    lesions = _lesions(data.lesions) if data.lesions else {}
    splits: dict[str, list[Item]] = {"training": [], "test": []}
    subjects: dict[Path, str] = {}
    problems: list[str] = []
    finder = Finder()
    for line, row, wrong in rows:
        where = f"{data.split_csv}: line {line}"
        if wrong is not None:
            problems.append(f"{where}: {wrong}")
            continue
        try:
            item = _item(row, data.images, finder)
        except Unusable as e:
            problems.append(f"{where}: {e}")
            continue
        if row["fold"] not in ("train", "test"):
            problems.append(f"{where}: fold should be train or test, got {row['fold']!r}")
            continue
        splits["test" if row["fold"] == "test" else "training"].append(item)
        subject = next((row[column] for column in _SUBJECTS if row.get(column)), "") or lesions.get(row["image"], "")
        if subject:
            subjects[item.image] = subject
    return {split: tuple(items) for split, items in splits.items()}, subjects, problems


def centers_in(split_csv: Path) -> list[int]:
    """The centers that have rows, in order.

    Raises:
        DataError: no such CSV, or a column is missing.
    """
    return sorted({number for _, row, _ in _rows(split_csv) if (number := _number(row["center"])) is not None and number >= 0})


def _rows_of_center(data: FedIsicData) -> list[tuple[int, Row, str | None]]:
    """(line number, row, what is wrong with it) of the center's rows."""
    rows = _rows(data.split_csv)
    ours = [row for row in rows if _number(row[1]["center"]) == data.center]
    if not ours:
        centers = sorted({row["center"] for _, row, _ in rows})[:20]
        found = ", ".join(centers) or "none"
        raise DataError(f"{data.split_csv}: no row has center {data.center} (data.center in silo.yaml); centers found: {found}")
    return ours


def _rows(split_csv: Path) -> list[tuple[int, Row, str | None]]:
    """The same of every row."""
    names = {name: name for name in (*COLUMNS, *_SUBJECTS)}
    return list(Table(split_csv, names, needed=_NEEDED, what="split CSV", next_step="correct data.split_csv in silo.yaml").rows())


def _lesions(path: Path) -> dict[str, str]:
    """Image -> its lesion.

    Raises:
        DataError: no such CSV, or a column is missing.
    """
    table = Table(path, _LESIONS, needed=tuple(_LESIONS), what="CSV of lesions", next_step="correct data.lesions in silo.yaml")
    return {row["image"]: row["lesion"] for _, row, _ in table.rows()}


def _item(row: Row, images: Path, finder: Finder) -> Item:
    name = row["image"]
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise Unusable(f"image should be a plain file name without .jpg, got {name!r}")
    label = _number(row["target"])
    if label is None:
        raise Unusable(f"target should be a class number, got {row['target']!r}")
    return Item(finder.find(images, f"{name}.jpg"), label)


def _number(text: str) -> int | None:
    """Whole number of '3' and of '3.0', as spreadsheets write it."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None

