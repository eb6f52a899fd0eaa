"""Grey pictures in one folder, masks in another: how the public lung sets are published. Called by `datalist.manifest_of`.

The sets know neither hospitals nor splits: names decide, by their hash, so that the same pictures fall to the same hospital and
split on every machine.
"""

from __future__ import annotations

from pathlib import Path

from fedhelp_core.config.silo import PicturesAndMasks
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.sharing import owners, split_of_name
from fedhelp_core.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_pictures_and_masks(data: PicturesAndMasks) -> tuple[dict[str, tuple[Item, ...]], list[str]]:
    """Split -> this hospital's items, by name; and what is wrong.

    Raises:
        DataError: a folder is missing, or has no picture of this prefix.
    """
    for field in ("images", "masks"):
        if not getattr(data, field).is_dir():
            raise DataError(f"{getattr(data, field)}: no such folder; correct data.{field} in silo.yaml")
    paths = sorted(p for p in data.images.iterdir() if p.suffix.lower() in _SUFFIXES and p.name.startswith(data.prefix) and p.name[0] != ".")
    if not paths:
        beginning = f" whose name begins with {data.prefix!r}" if data.prefix else ""
        raise DataError(f"{data.images}: no picture ({', '.join(_SUFFIXES)}){beginning}; correct data.images or data.prefix in silo.yaml")
    split = {path.name: split_of_name(path.stem, test=data.test_fraction, validation=data.validation_fraction) for path in paths}
    found: dict[str, list[Item]] = {name: [] for name in SPLITS}
    problems = []
    for name in SPLITS:
        members = [path for path in paths if split[path.name] == name]
        owner = owners((path.name for path in members), data.share.sizes, name) if data.share is not None else {}
        for path in members:
            if data.share is not None and owner[path.name] != data.share.number:
                continue
            mask = _mask_of(path, data.masks)
            if mask is None:
                problems.append(f"{path}: has no mask {path.stem}.png or {path.stem}_mask.png in {data.masks}; add it, or remove the picture")
            else:
                found[name].append(Item(path, mask=mask))
    return {name: tuple(items) for name, items in found.items()}, problems


def _mask_of(path: Path, masks: Path) -> Path | None:
    return next((mask for mask in (masks / f"{path.stem}.png", masks / f"{path.stem}_mask.png") if mask.is_file()), None)
