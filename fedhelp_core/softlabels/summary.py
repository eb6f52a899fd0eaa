"""What is in a distillation set: its classes, how sure the teachers are, examples, and how far they agree. NumPy alone.

Called by `fedhelp softlabels show` and by the run's report. Shards are read one at a time; teachers are compared by what the
ledger has of each. Shapes: N images, C the teachers' classes, S side in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.softlabels.distillation_set import Index, read_answers, read_images, read_index
from fedhelp_core.softlabels.ledger import Ledger
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.store import Store

_TINY = 1e-12  # below any probability that float16 can hold, so that 0 log 0 is 0


@dataclass(frozen=True, kw_only=True)
class Example:
    """One public image and what the teachers said."""

    sha256: str
    """Of its content: its name in the ledger."""
    image_HWC: NDArray[np.uint8]
    favourites: tuple[tuple[str, float], ...]
    """Class name and probability, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two teachers agree."""

    one: str
    other: str
    same_favourite: float
    """Share of images on which both favour the same class."""
    divergence: float
    """Mean Jensen-Shannon divergence in nats: 0 is agreement, log 2 = 0.69 the most there is."""


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """A distillation set in numbers."""

    sha256: str
    images: int
    image_size: int
    teachers: tuple[tuple[str, float], ...]
    """'<name> version <version>' and its share of the mix."""
    classes: tuple[str, ...]
    """The prompts where the teachers had some, else numbers."""
    favourites_C: tuple[int, ...]
    """Images whose likeliest class this is."""
    mean_C: tuple[float, ...]
    """Mean probability."""
    entropies_N: NDArray[np.float64]
    """Of each answer in nats: 0 is certainty, log C no opinion."""
    examples: tuple[Example, ...]
    agreements: tuple[Agreement, ...]
    """One per pair of teachers; none where the ledger no longer has all of their answers."""


def summarise(store: Store, sha256: str, *, examples: int = 12) -> SetSummary:
    """The set `sha256` in numbers, with at most `examples` images from all over it.

    Raises:
        NotFound: no such set, or a shard is gone.
        DataError: a file is damaged or forged.
        TeacherError: a recorded batch is.
    """
    index = read_index(store, sha256)
    names = class_names(index)
    comparison = _Comparison(store, index)
    favourites_C, sums_C = np.zeros(index.classes, np.int64), np.zeros(index.classes)
    entropies, shown = [], []
    wanted, start = np.linspace(0, index.images - 1, min(examples, index.images)).astype(int), 0
    for number, shard in enumerate(index.shards):
        answers, hashes = read_answers(store, sha256, index, number)
        rows_NC = answers.astype(np.float64)
        favourites_C += np.bincount(rows_NC.argmax(axis=1), minlength=index.classes)
        sums_C += rows_NC.sum(axis=0)
        entropies.append(_entropy(rows_NC))
        comparison.add(hashes)
        chosen = [int(i) - start for i in wanted if start <= i < start + shard.images]
        images_NCHW = read_images(store, sha256, index, number) if chosen else None
        for row in chosen:
            assert images_NCHW is not None
            image_HWC = np.ascontiguousarray(images_NCHW[row].transpose(1, 2, 0))
            shown.append(Example(sha256=hashes[row], image_HWC=image_HWC, favourites=_favourites(rows_NC[row], names)))
        start += shard.images
    return SetSummary(
        sha256=sha256, images=index.images, image_size=index.image_size, classes=names,
        teachers=tuple((f"{teacher.name} version {teacher.version}", teacher.share) for teacher in index.teachers),
        favourites_C=tuple(favourites_C.tolist()), mean_C=tuple((sums_C / index.images).tolist()), entropies_N=np.concatenate(entropies),
        examples=tuple(shown), agreements=comparison.agreements())


def class_names(index: Index) -> tuple[str, ...]:
    """The prompts that all teachers share, else 'class 0', 'class 1', ..."""
    prompts = {tuple(teacher.prompts) for teacher in index.teachers}
    if len(prompts) == 1 and (names := prompts.pop()):
        return names
    return tuple(f"class {number}" for number in range(index.classes))


class _Comparison:
    """Every pair of teachers over the images of the set, shard after shard."""

    def __init__(self, store: Store, index: Index) -> None:
        identities = [TeacherIdentity.of_source(teacher.model_dump()) for teacher in index.teachers]
        self._ledgers = {i.name: Ledger(store, i) for i in identities} if len(identities) > 1 else {}
        self._sums = {pair: np.zeros(2) for pair in itertools.combinations(self._ledgers, 2)}
        self._images = index.images
        self._complete = True

    def add(self, hashes: Sequence[str]) -> None:
        self._complete = self._complete and all(image in ledger for ledger in self._ledgers.values() for image in hashes)
        if not self._complete:
            return
        rows = {name: ledger.rows(hashes).astype(np.float64) for name, ledger in self._ledgers.items()}
        for (one, other), sums in self._sums.items():
            mean_NC = (rows[one] + rows[other]) / 2
            sums += [(rows[one].argmax(axis=1) == rows[other].argmax(axis=1)).sum(),
                     (_entropy(mean_NC) - (_entropy(rows[one]) + _entropy(rows[other])) / 2).sum()]

    def agreements(self) -> tuple[Agreement, ...]:
        if not self._complete:
            return ()
        means = {pair: sums / self._images for pair, sums in self._sums.items()}
        return tuple(
            Agreement(one=one, other=other, same_favourite=float(same), divergence=max(0.0, float(divergence)))
            for (one, other), (same, divergence) in means.items())


def _entropy(rows_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    entropies_N: NDArray[np.float64] = np.maximum(-(rows_NC * np.log(rows_NC.clip(_TINY))).sum(axis=1), 0.0)
    return entropies_N


def _favourites(row_C: NDArray[np.float64], names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple((names[c], float(row_C[c])) for c in row_C.argsort(kind="stable")[::-1][:3])
