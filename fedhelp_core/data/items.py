"""One labelled image (picture or volume) of a silo, and the names of the splits. Shared by the layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Item:
    """An image file and the number of its class, or what is labelled of each finding; in segmentation, the file of its mask."""

    image: Path
    label: int = 0
    mask: Path | None = None
    sequences: tuple[Path, ...] = ()
    """Further volumes of the same patient, registered to `image`: one for each further channel of the task."""
    findings: tuple[int, ...] = ()
    """0, 1 or NOT_LABELLED of each finding of the task; () of other forms."""
