"""A teacher tried on a few public images: what it says, and whether that can teach anything. Called by `fedhelp check`, `fedhelp teacher`, prefetch.

Answers of a federation's teacher go into its ledger, so that no later run asks about these images again. Shapes: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.data.public import preparation_of
from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.asking import prepared
from fedhelp_core.softlabels.ledger import Ledger
from fedhelp_core.softlabels.open import open_teacher
from fedhelp_core.softlabels.prefetch import ask_unseen
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.teachers import Question, TeacherIdentity, seen_by
from fedhelp_core.softlabels.verdict import verdict
from fedhelp_core.store.base import Store

IMAGES = 20
"""Enough to see that answers differ, and little to pay for."""


@dataclass(frozen=True)
class Tried:
    """What one teacher said."""

    teacher: TeacherConfig
    hashes: tuple[str, ...]
    answers_NC: NDArray[np.float64]
    """Probabilities; of masks, each foreground's mean over the image."""
    asked: int
    """Images that were not known before."""
    masks: bool

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """A line for people of each image: its sha256, likeliest class, probability, and spread (entropy as a share of the most there can be)."""
        names = self.teacher.prompts or tuple(f"class {number}" for number in range(self.answers_NC.shape[1]))
        for image, answer_C in zip(self.hashes, self.answers_NC, strict=True):
            best = int(answer_C.argmax())
            if self.masks:
                yield image[:12], "foreground", f"{answer_C[best]:.2f}", ""
                continue
            spread = -(answer_C * np.log(answer_C.clip(1e-12))).sum() / math.log(max(2, len(answer_C)))
            yield image[:12], names[best], f"{answer_C[best]:.2f}", f"{abs(spread):.2f}"

    @property
    def remarks(self) -> list[str]:
        """What looks wrong with these answers."""
        return [f"teacher {self.teacher.name}: {one}" for one in verdict(self.answers_NC, masks=self.masks)]


def trial(store: Store, public: PublicSetConfig, task: TaskConfig, teacher: TeacherConfig, *, images: int = IMAGES) -> Tried:
    """`teacher` asked about `images` public ones, as prefetch asks it.

    Raises:
        ConfigError, DataError, TeacherError, TeacherUnavailable: as prefetch.
    """
    look = seen_by(teacher, task)
    question = Question.of(look)
    ledger = Ledger(store, TeacherIdentity.of(teacher, preparation_of(look).words, question))
    shown = read_public_images(public.images, preparation_of(look), layout=public.layout, most=images)
    unseen = sum(image not in ledger for image in shown.hashes)
    ask_unseen(open_teacher(teacher), ledger, shown, question, run="check")
    answers = ledger.encoding.probabilities(ledger.rows(shown.hashes))
    return Tried(teacher, shown.hashes, per_image(answers), unseen, question.masks)


def may_be_tried(teacher: TeacherConfig) -> bool:
    """Whether the budget allows it: asking is free, or somebody has set a limit."""
    budget = teacher.budget
    return budget.price_per_image == budget.price_per_request == 0 or budget.max_cost is not None or budget.max_requests is not None


def per_image(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C) of answers (N, C) or (N, C, S, ...)."""
    found: NDArray[np.float64] = answers.reshape(*answers.shape[:2], -1).mean(axis=2)
    return found


def tried_alone(teacher: TeacherConfig, public: PublicSetConfig, task: TaskConfig, *, images: int = IMAGES) -> Tried:
    """As `trial`, of a teacher on this machine that nothing is kept of."""
    from fedhelp_core.softlabels.answers import checked_probabilities

    look = seen_by(teacher, task)
    shown = read_public_images(public.images, preparation_of(look), layout=public.layout, most=images)
    client = open_teacher(teacher)
    size = min(prepared(client, Question.of(look)).batch_size, images)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(shown.hashes), size):
        chosen: Sequence[int] = range(start, min(start + size, len(shown.hashes)))
        parts.append(checked_probabilities(client.ask(shown.pixels(chosen), request_id=f"trial-{start}"), teacher, len(chosen)))
    if not parts:
        raise TeacherError(f"teacher {teacher.name!r}: no public image to try it on in {public.images}")
    return Tried(teacher, shown.hashes, np.concatenate(parts).astype(np.float64), len(shown.hashes), masks=False)
