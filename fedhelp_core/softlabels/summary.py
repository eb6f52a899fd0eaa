"""What is in a distillation set: its classes, how sure the teachers are, examples, and how far they agree. NumPy alone.

Called by `fedhelp softlabels show` and by the run's report. Shards are read one at a time; teachers are compared by what the
ledger has of each. Every pixel of masks, and every finding, is an answer of its own: its entropy is that of foreground against background, an
image's the mean over its pixels. Shapes: N images, C the teacher's classes (of masks: foregrounds), S side in pixels or voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.softlabels.distillation_set import Index, read_answers, read_images, read_index
from fedhelp_core.softlabels.ledger import Ledger
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.store.base import Store

_TINY = 1e-12  # below any probability that is kept, so that 0 log 0 is 0
_TINT = np.array([255, 64, 64])  # of what teachers hold for foreground


@dataclass(frozen=True, kw_only=True)
class Example:
    """One public image and what the teachers said."""

    sha256: str
    """Of its content: its name in the ledger."""
    image_HWC: NDArray[np.uint8]
    """RGB; the middle slice of a volume. Foreground of masks is tinted."""
    favourites: tuple[tuple[str, float], ...]
    """Class name and probability, the likeliest first; of masks: the share of the image."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two teachers agree."""

    one: str
    other: str
    same_favourite: float
    """Share of images on which both favour the same class; of masks: of pixels that both put on the same side."""
    divergence: float
    """Mean Jensen-Shannon divergence in nats: 0 is agreement, log 2 = 0.69 the most there is."""


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """A distillation set in numbers."""

    sha256: str
    images: int
    image_sides: tuple[int, ...]
    masks: bool
    teachers: tuple[tuple[str, float], ...]
    """'<name> version <version>' and its share of the mix."""
    classes: tuple[str, ...]
    """The prompts where the teachers had some, else numbers."""
    favourites_C: tuple[int, ...]
    """Images whose likeliest class this is; of masks: in which some pixel is more likely this than not."""
    mean_C: tuple[float, ...]
    """Mean probability."""
    entropies_N: NDArray[np.float64]
    """Of each answer in nats: 0 is certainty, `most_entropy` no opinion."""
    most_entropy: float
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
    masks, by_itself, names = index.encoding.masks, index.encoding.by_itself, class_names(index)
    comparison = _Comparison(store, index)
    favourites_C, sums_C = np.zeros(len(names), np.int64), np.zeros(len(names))
    entropies, shown = [], []
    wanted, start = np.linspace(0, index.images - 1, min(examples, index.images)).astype(int), 0
    for number, shard in enumerate(index.shards):
        kept, hashes = read_answers(store, sha256, index, number)
        chosen = [int(i) - start for i in wanted if start <= i < start + shard.images]
        images_NCHW = read_images(store, sha256, index, number) if chosen else None
        for row, (answer, image) in enumerate(zip(kept, hashes, strict=True)):
            probabilities = index.encoding.probabilities(answer)
            favourites_C += _favoured(probabilities, by_itself)
            means_C = probabilities.reshape(len(names), -1).mean(axis=1)
            sums_C += means_C
            entropies.append(float(_entropy(probabilities[None], by_itself)[0]))
            if row in chosen:
                assert images_NCHW is not None
                picture = _picture(images_NCHW[row], probabilities if masks else None)
                shown.append(Example(sha256=image, image_HWC=picture, favourites=_favourites(means_C, names)))
        comparison.add(hashes)
        start += shard.images
    return SetSummary(
        sha256=sha256, images=index.images, image_sides=tuple(index.image_shape[1:]), masks=masks, classes=names,
        teachers=tuple((f"{teacher.name} version {teacher.version}", teacher.share) for teacher in index.teachers),
        favourites_C=tuple(favourites_C.tolist()), mean_C=tuple((sums_C / index.images).tolist()), entropies_N=np.array(entropies),
        most_entropy=math.log(2 if by_itself else len(names)), examples=tuple(shown), agreements=comparison.agreements())


def class_names(index: Index) -> tuple[str, ...]:
    """The prompts that all teachers share, else 'class 0', 'class 1', ...; of masks without the background."""
    prompts = {tuple(teacher.prompts) for teacher in index.teachers}
    shared = prompts.pop() if len(prompts) == 1 else ()
    if not index.encoding.masks:
        return shared or tuple(f"class {number}" for number in range(index.classes))
    foregrounds = index.answer_shape[0]
    return shared[-foregrounds:] or (("foreground",) if foregrounds == 1 else tuple(f"class {number + 1}" for number in range(foregrounds)))


class _Comparison:
    """Every pair of teachers over the images of the set, shard after shard."""

    def __init__(self, store: Store, index: Index) -> None:
        identities = [TeacherIdentity.of_source(teacher.model_dump()) for teacher in index.teachers]
        self._ledgers = {i.name: Ledger(store, i) for i in identities} if len(identities) > 1 else {}
        self._sums = {pair: np.zeros(2) for pair in itertools.combinations(self._ledgers, 2)}
        self._index = index
        self._complete = True

    def add(self, hashes: Sequence[str]) -> None:
        self._complete = self._complete and all(image in ledger for ledger in self._ledgers.values() for image in hashes)
        if self._complete and self._ledgers:
            for image in hashes:  # one at a time: masks of a shard would be large as float64
                self._add({name: self._index.encoding.probabilities(ledger.rows([image])) for name, ledger in self._ledgers.items()})

    def _add(self, answers: dict[str, NDArray[np.float64]]) -> None:
        by_itself = self._index.encoding.by_itself
        for (one, other), sums in self._sums.items():
            a, b = answers[one], answers[other]
            same = ((a > 0.5) == (b > 0.5)).mean() if by_itself else a.argmax(axis=1)[0] == b.argmax(axis=1)[0]
            sums += [float(same), float((_entropy((a + b) / 2, by_itself) - (_entropy(a, by_itself) + _entropy(b, by_itself)) / 2)[0])]

    def agreements(self) -> tuple[Agreement, ...]:
        if not self._complete:
            return ()
        means = {pair: sums / self._index.images for pair, sums in self._sums.items()}
        return tuple(
            Agreement(one=one, other=other, same_favourite=float(same), divergence=max(0.0, float(divergence)))
            for (one, other), (same, divergence) in means.items())


def _favoured(probabilities: NDArray[np.float64], by_itself: bool) -> NDArray[np.int64]:
    """1 for each class that this answer counts for."""
    if by_itself:
        most_C: NDArray[np.float64] = probabilities.reshape(len(probabilities), -1).max(axis=1)
        return np.where(most_C > 0.5, np.int64(1), np.int64(0))
    return np.bincount([int(probabilities.argmax())], minlength=len(probabilities)).astype(np.int64)


def _entropy(answers: NDArray[np.float64], by_itself: bool) -> NDArray[np.float64]:
    """Of each answer (n, ...), in nats."""
    if by_itself:
        against = 1 - answers
        each = -(answers * np.log(answers.clip(_TINY)) + against * np.log(against.clip(_TINY)))
        means_N: NDArray[np.float64] = np.maximum(each.reshape(len(answers), -1).mean(axis=1), 0.0)
        return means_N
    entropies_N: NDArray[np.float64] = np.maximum(-(answers * np.log(answers.clip(_TINY))).sum(axis=1), 0.0)
    return entropies_N


def _picture(image_CHW: NDArray[np.uint8], foreground_F: NDArray[np.float64] | None) -> NDArray[np.uint8]:
    """RGB (H, W, 3)."""
    if image_CHW.ndim == 4:
        middle = image_CHW.shape[-1] // 2
        image_CHW, foreground_F = image_CHW[..., middle], None if foreground_F is None else foreground_F[..., middle]
    shown_CHW = image_CHW if len(image_CHW) == 3 else np.repeat(image_CHW[:1], 3, axis=0)  # of several sequences the first
    image_HWC = shown_CHW.transpose(1, 2, 0)
    if foreground_F is None:
        return np.ascontiguousarray(image_HWC)
    share_HW1 = foreground_F.max(axis=0)[..., None] / 2
    return np.ascontiguousarray((image_HWC * (1 - share_HW1) + _TINT * share_HW1).round().astype(np.uint8))


def _favourites(means_C: NDArray[np.float64], names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple((names[c], float(means_C[c])) for c in means_C.argsort(kind="stable")[::-1][:3])
