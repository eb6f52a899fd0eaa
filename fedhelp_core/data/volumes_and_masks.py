"""Volumes in one folder, masks in another: a DICOM series a folder, or NIfTI files. Called by `public_layouts`.

    <images>/<subject>/*.dcm  or  <images>/<subject>.nii.gz          <masks>/<subject>/*.dcm  or  <masks>/<subject>.nii.gz

Names decide about hospital and split, as for pictures and masks. No MONAI: nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.sharing import owners, split_of_name
from fedhelp_core.errors import DataError

_SUFFIXES = (".nii.gz", ".nii")


def read_volumes_and_masks(
    images: Path, masks: Path, *, sizes: Sequence[float] = (1.0,), test: float = 0.2, validation: float = 0.0,
) -> list[tuple[dict[str, tuple[Item, ...]], list[str]]]:
    """For each of the hospitals of these `sizes`: split -> its items, by name; and what is wrong.

    Raises:
        DataError: a folder is missing, or has no volume.
    """
    for folder, option in ((images, "--images"), (masks, "--masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give it with {option}")
    volumes, answers = _volumes_in(images), _volumes_in(masks)
    if not volumes:
        raise DataError(f"{images}: no volume, neither a folder of DICOM slices nor a NIfTI file; give another folder with --images")
    found: list[tuple[dict[str, list[Item]], list[str]]] = [({name: [] for name in SPLITS}, []) for _ in sizes]
    for split in SPLITS:
        members = [name for name in volumes if split_of_name(name, test=test, validation=validation) == split]
        owner = owners(members, sizes, split)
        for name in members:
            parts, problems = found[owner[name]]
            if name in answers:
                parts[split].append(Item(volumes[name], mask=answers[name]))
            else:
                problems.append(f"{volumes[name]}: has no mask {name} in {masks}; add it, or remove the volume")
    return [({split: tuple(items) for split, items in parts.items()}, problems) for parts, problems in found]


def _volumes_in(folder: Path) -> dict[str, Path]:
    """Subject -> its NIfTI file or folder of slices, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
        if path.is_dir() or suffix is not None:
            found[path.name.removesuffix(suffix or "")] = path
    return found
