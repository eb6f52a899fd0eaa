"""Dealing out a data set that knows no hospitals: which subject is whose. Called by the layouts, by `ingest` and by the phantoms.

Subjects (patients or lesions, where names or lists tell them) are dealt out whole, in the order of the hash of their names: the same names give
the same hands on every machine. Subjects for training and validation follow the given sizes, class by class; those for the test are dealt evenly,
so that a small hospital's score means something.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedhelp_core.config.silo import PAPER_SIZES
from fedhelp_core.data.items import SPLITS, Item
from fedhelp_core.data.names import plain

Parts = Mapping[str, Sequence[Item]]
"""Split -> items."""


def owners(subjects: Iterable[str], sizes: Sequence[float], split: str) -> dict[str, int]:
    """Subject -> number of its hospital. Everybody gets at least one where there are enough; the rest follow `sizes`, but for the test."""
    assert split in SPLITS
    dealt = sorted(set(subjects), key=_by_hash)
    counts = hand_sizes(len(dealt), [1.0] * len(sizes) if split == "test" else sizes)
    hands = [number for number, count in enumerate(counts) for _ in range(count)]
    return dict(zip(dealt, hands, strict=True))


def hand_sizes(total: int, sizes: Sequence[float]) -> list[int]:
    """`total` in the proportions of `sizes`, by largest remainder, at least 1 each where `total` allows."""
    least = 1 if total >= len(sizes) else 0
    shares = [(total - least * len(sizes)) * size / sum(sizes) for size in sizes]
    counts = [least + int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda number: -(shares[number] % 1))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return counts


def skewed(count: int, ratio: float | None = None) -> tuple[float, ...]:
    """Relative sizes of `count` hospitals in the paper's skew; `ratio`: so many times as large is the largest as the smallest (1: all alike)."""
    logs = [math.log(size) for size in PAPER_SIZES]
    last = len(logs) - 1
    places = [last * number / max(1, count - 1) for number in range(count)]
    between = [logs[int(place)] + place % 1 * (logs[min(int(place) + 1, last)] - logs[int(place)]) for place in places]
    stretch = 1.0 if ratio is None else math.log(ratio) / (logs[0] - logs[last])
    return tuple(round(math.exp(logs[0] + stretch * (log - logs[0])), 3) for log in between)


def dealt(parts: Parts, subjects: Mapping[Path, str], sizes: Sequence[float], *, images: bool = False) -> list[dict[str, tuple[Item, ...]]]:
    """`parts` of each of the hospitals of these `sizes`: relative ones; or, with `images`, numbers of training images, and the rest is left out."""
    hands: list[dict[str, tuple[Item, ...]]] = [{} for _ in sizes]
    for split, items in parts.items():
        owner = _by_images(items, subjects, [int(size) for size in sizes]) if images and split == "training" else _in_proportion(
            items, subjects, sizes, split)
        for number, hand in enumerate(hands):
            hand[split] = tuple(item for item in items if owner.get(subject_of(item, subjects)) == number)
    return hands


def taken(items: Sequence[Item], subjects: Mapping[Path, str], wanted: Mapping[int, int]) -> set[str]:
    """Subjects that have about as many images of each class as `wanted` says, never more than that but where no subject is small enough."""
    groups = _groups(items, subjects)
    order = sorted(groups, key=_by_hash)
    found: set[str] = set()
    have: Counter[int] = Counter()
    for name in order:
        if all(have[label] + count <= wanted.get(label, 0) for label, count in groups[name].items()):
            found.add(name)
            have += groups[name]
    for label in sorted(label for label, count in wanted.items() if count and not have[label]):
        few = sum(groups.values(), Counter())[label] // 2  # a class that lies in few subjects: its smallest one, unless that is most of it
        smallest = [name for name in sorted(order, key=lambda name: groups[name].total()) if 0 < groups[name][label] <= few]
        found |= set(smallest[:1])
    return found


def subject_of(item: Item, subjects: Mapping[Path, str]) -> str:
    """Whom or what `item` shows; itself, where nothing tells."""
    return subjects.get(item.image) or plain(item.image.name)


def share_of_name(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def is_test(name: str, fraction: float) -> bool:
    """Whether the hash of `name` puts it among the `fraction` that is held out for the test."""
    return share_of_name(f"test/{name}") < fraction


def _in_proportion(items: Sequence[Item], subjects: Mapping[Path, str], sizes: Sequence[float], split: str) -> dict[str, int]:
    by_class: dict[int, list[str]] = {}
    for name, labels in _groups(items, subjects).items():
        by_class.setdefault(min(labels), []).append(name)
    return {name: number for _, names in sorted(by_class.items()) for name, number in owners(names, sizes, split).items()}


def _by_images(items: Sequence[Item], subjects: Mapping[Path, str], sizes: Sequence[int]) -> dict[str, int]:
    """The smallest hospital first: what is a rounding error of a large one is half of its images."""
    owner: dict[str, int] = {}
    classes = Counter(item.label for item in items)
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number]):
        left = [item for item in items if subject_of(item, subjects) not in owner]
        wanted = dict(zip(sorted(classes), hand_sizes(sizes[number], [classes[label] for label in sorted(classes)]), strict=True))
        owner |= dict.fromkeys(taken(left, subjects, wanted), number)
    return owner


def _groups(items: Iterable[Item], subjects: Mapping[Path, str]) -> dict[str, Counter[int]]:
    """Subject -> its images of each class."""
    groups: dict[str, Counter[int]] = {}
    for item in items:
        groups.setdefault(subject_of(item, subjects), Counter())[item.label] += 1
    return groups


def _by_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
