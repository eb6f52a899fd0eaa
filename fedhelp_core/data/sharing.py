"""Dealing out a public data set that knows no hospitals: which subject is whose. Called by the layouts and by the phantoms.

Subjects (patients, where names tell them) are dealt out whole, in the order of the hash of their names: the same names give
the same hands on every machine. Training subjects follow the given sizes; validation and test subjects are dealt evenly, so
that a small hospital's score means something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fedhelp_core.data.items import SPLITS


def owners(subjects: Iterable[str], sizes: Sequence[float], split: str) -> dict[str, int]:
    """Subject -> number of its hospital. Everybody gets at least one where there are enough; the rest follow `sizes` in training."""
    assert split in SPLITS
    dealt = sorted(set(subjects), key=lambda name: hashlib.sha256(name.encode()).digest())
    counts = hand_sizes(len(dealt), sizes if split == "training" else [1.0] * len(sizes))
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


def share_of_name(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def split_of_name(name: str, *, test: float, validation: float) -> str:
    """Where the hash of `name` puts it: `test` of all names, `validation` of the others, else training."""
    if share_of_name(f"test/{name}") < test:
        return "test"
    return "validation" if share_of_name(f"validation/{name}") < validation else "training"
