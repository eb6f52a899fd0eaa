"""One labelled image (picture or volume) of a silo, and the names of the splits. Shared by the layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Item:
    """An image file and the number of its class; in segmentation, the file of its mask."""

    image: Path
    label: int = 0
    mask: Path | None = None
