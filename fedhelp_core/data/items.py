"""One labelled image of a silo, and the names of the splits. Shared by the layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Item:
    """An image file and the number of its class."""

    image: Path
    label: int
