"""Volumes in one folder, masks in another: a DICOM series a folder, or NIfTI files. Called by `public_layouts`.

    <images>/<subject>/*  or  <images>/<subject>.nii.gz  or  <images>/<subject>.dcm (multi-frame)          <masks>/ alike

Names decide about hospital and split, as for pictures and masks. No MONAI: nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import files_in
from fedhelp_core.data.sharing import owners, split_of_name
from fedhelp_core.errors import DataError

_SUFFIXES = (".nii.gz", ".nii", ".dcm")


def read_volumes_and_masks(
    images: Path, masks: Path, *, sizes: Sequence[float] = (1.0,), test: float = 0.2, validation: float = 0.0,
) -> list[tuple[dict[str, tuple[Item, ...]], list[str], list[str]]]:
    """For each of the hospitals of these `sizes`: split -> its items, by name; what is wrong; what was left alone.

    Raises:
        DataError: a folder is missing, or has no volume.
    """
    for folder, option in ((images, "--images"), (masks, "--masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give it with {option}")
    volumes, wrong, left = files_in(images, _SUFFIXES, folders=True)
    answers, more_wrong, more_left = files_in(masks, _SUFFIXES, folders=True)
    if not volumes:
        raise DataError(f"{images}: no volume, neither a folder of DICOM slices nor a NIfTI file; give another folder with --images")
    found: list[tuple[dict[str, list[Item]], list[str]]] = [({name: [] for name in SPLITS}, []) for _ in sizes]
    found[0][1].extend([*wrong, *more_wrong])  # nobody's in particular
    for split in SPLITS:
        members = [name for name in volumes if split_of_name(name, test=test, validation=validation) == split]
        owner = owners(members, sizes, split)
        for name in members:
            parts, problems = found[owner[name]]
            if name in answers:
                parts[split].append(Item(volumes[name], mask=answers[name]))
            else:
                problems.append(f"{volumes[name]}: has no mask {name} in {masks}; add it, or remove the volume")
    notes = [*left, *more_left]
    return [({split: tuple(items) for split, items in parts.items()}, problems, notes) for parts, problems in found]
