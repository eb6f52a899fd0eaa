"""Volumes in one folder, masks in another: a DICOM series a folder, or NIfTI files. Called by `public_layouts`.

    <images>/<subject>/*  or  <images>/<subject>.nii.gz  or  <images>/<subject>.dcm (multi-frame)          <masks>/ alike

Names decide what is held out for the test, as of pictures and masks. No MONAI: nothing is opened here.
"""

from __future__ import annotations

from pathlib import Path

from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import files_in
from fedhelp_core.data.sharing import is_test
from fedhelp_core.errors import DataError

_SUFFIXES = (".nii.gz", ".nii", ".dcm")


def read_volumes_and_masks(images: Path, masks: Path, *, test: float = 0.2) -> tuple[dict[str, tuple[Item, ...]], list[str], list[str]]:
    """Split -> items, by name; what is wrong; what was left alone.

    Raises:
        DataError: a folder is missing, or has no volume.
    """
    for folder, option in ((images, "--images"), (masks, "--masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give it with {option}")
    volumes, problems, notes = files_in(images, _SUFFIXES, folders=True)
    answers, more_problems, more_notes = files_in(masks, _SUFFIXES, folders=True)
    if not volumes:
        raise DataError(f"{images}: no volume, neither a folder of DICOM slices nor a NIfTI file; give another folder with --images")
    found: dict[str, list[Item]] = {name: [] for name in SPLITS}
    problems += more_problems
    for name, path in volumes.items():
        if name in answers:
            found["test" if is_test(name, test) else "training"].append(Item(path, mask=answers[name]))
        else:
            problems.append(f"{path}: has no mask {name} in {masks}; add it, or remove the volume")
    return {split: tuple(items) for split, items in found.items()}, problems, [*notes, *more_notes]
