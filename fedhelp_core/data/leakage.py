"""The same picture, or the same subject (patient, lesion), in more than one place: whether a test would measure memory. Called by `ingest`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedhelp_core.data.inspection import Seen
from fedhelp_core.data.items import SPLITS

Side = Literal["training", "test"]
_KEPT_FIRST: Mapping[Side, tuple[str, ...]] = {"training": ("test", "validation", "training"), "test": ("training", "validation", "test")}


@dataclass(frozen=True)
class Place:
    """One item of one silo."""

    silo: str
    split: str
    seen: Seen

    @property
    def key(self) -> tuple[str, str, Path]:
        """What tells it from all others."""
        return self.silo, self.split, self.seen.item.image

    def __str__(self) -> str:
        return f"{self.silo} {self.split} {self.seen.item.image.name}"


@dataclass(frozen=True)
class Group:
    """Items that show the same."""

    what: Literal["picture", "patient or lesion"]
    key: str
    places: tuple[Place, ...]

    @property
    def splits(self) -> frozenset[str]:
        """Where they lie."""
        return frozenset(place.split for place in self.places)

    @property
    def leaks(self) -> bool:
        """Whether more than one split has it, of whichever silo: all silos train one model."""
        return len(self.splits) > 1

    @property
    def contradicts(self) -> bool:
        """Whether the same picture has several classes, or other findings."""
        return self.what == "picture" and len({(place.seen.item.label, place.seen.item.findings) for place in self.places}) > 1

    def __str__(self) -> str:
        same, what = (" = ", self.what) if self.what == "picture" else (", ", f"{self.what}, {self.key!r},")
        shown = same.join(str(place) for place in self.places[:4]) + (f"{same}..." if len(self.places) > 4 else "")
        return f"the same {what} is in {' and '.join(split for split in SPLITS if split in self.splits)}: {shown}"


def groups_of(places: Iterable[Place], subjects: Mapping[Path, str]) -> list[Group]:
    """Pictures that are there more than once, and subjects that are in more than one split; in the order of their first place.

    `subjects`: image -> its patient or lesion, where names or lists tell.
    """
    pictures: dict[str, list[Place]] = {}
    known: dict[str, list[Place]] = {}
    for place in places:
        pictures.setdefault(place.seen.content, []).append(place)
        subject = subjects.get(place.seen.item.image)
        if subject is not None:
            known.setdefault(subject, []).append(place)
    same = [Group("picture", content, tuple(found)) for content, found in pictures.items() if len(found) > 1]
    torn = [Group("patient or lesion", subject, tuple(found)) for subject, found in known.items() if len({place.split for place in found}) > 1]
    return [*same, *(group for group in torn if len({place.seen.item.image for place in group.places}) > 1)]


def dropped_from(side: Side, groups: Sequence[Group]) -> set[tuple[str, str, Path]]:
    """(silo, split, image) of what has to go from `side` (or from validation) so that no group leaks."""
    gone = set()
    for group in groups:
        if group.leaks:
            keep = next(split for split in _KEPT_FIRST[side] if split in group.splits)
            gone |= {place.key for place in group.places if place.split != keep}
    return gone
