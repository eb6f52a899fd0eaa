"""Grey pictures in one folder, masks in another: how the public lung sets are published. Called by `datalist.manifest_of`.

The sets know neither hospitals nor splits: names decide, by their hash, so that the same pictures are held out for the test on every machine, and
sharing.py deals them out.
"""

from __future__ import annotations

from pathlib import Path

from fedhelp_core.config.silo import PicturesAndMasks
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import files_in, plain
from fedhelp_core.data.picture_files import SUFFIXES
from fedhelp_core.data.sharing import is_test
from fedhelp_core.errors import DataError

_MASK_SUFFIXES = (".png",)


def read_pictures_and_masks(data: PicturesAndMasks) -> tuple[dict[str, tuple[Item, ...]], list[str], list[str]]:
    """Split -> items, by name; what is wrong; what was left alone.

    Raises:
        DataError: a folder is missing, or has no picture of this prefix.
    """
    for field in ("images", "masks"):
        if not getattr(data, field).is_dir():
            raise DataError(f"{getattr(data, field)}: no such folder; correct data.{field} in silo.yaml")
    pictures, problems, notes = files_in(data.images, SUFFIXES)
    masks, more_problems, more_notes = files_in(data.masks, _MASK_SUFFIXES)
    paths = {plain(path.name): path for name, path in pictures.items() if name.startswith(plain(data.prefix))}
    if not paths:
        beginning = f" whose name begins with {data.prefix!r}" if data.prefix else ""
        raise DataError(f"{data.images}: no picture ({', '.join(SUFFIXES)}){beginning}; correct data.images or data.prefix in silo.yaml")
    found: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for name, path in paths.items():
        stem = Path(name).stem
        mask = masks.get(stem) or masks.get(f"{stem}_mask")
        if mask is None:
            problems.append(f"{path}: has no mask {stem}.png or {stem}_mask.png in {data.masks}; add it, or remove the picture")
        else:
            found["test" if is_test(stem, data.test_fraction) else "training"].append(Item(path, mask=mask))
    return {name: tuple(items) for name, items in found.items()}, [*problems, *more_problems], [*notes, *more_notes]
