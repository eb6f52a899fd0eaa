"""Validation images of a hospital whose lists name too few: a share of its training images, whole subjects at a time. Called by `datalist`.

Validation images decide which model a hospital deploys, and where its operating point lies; nothing is trained on them. The rule:

- a fifth of the training images of each class, at most MOST in all: more make a score no surer than the test set is;
- of a class with ten images or more at least four: of fewer, one image is a quarter of the class's score;
- as many as ENOUGH_VALIDATION, where that is no more than a quarter of the training images: fewer would choose no model;
- none where fewer than eight images would be left to train on, or fewer than four come together: they would decide by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhelp_core.data.items import Item
from fedhelp_core.data.sharing import subject_of, taken
from fedhelp_core.registry.tasks import ENOUGH_VALIDATION

SHARE = 0.2
MOST = 500
"""Images: the standard error of an accuracy is then two hundredths."""
_QUARTER = 0.25
_LEAST_OF_A_CLASS, _FEW_OF_A_CLASS = 4, 10
_LEAST, _LEFT = 4, 8


def set_aside(
    training: Sequence[Item], validation: Sequence[Item], subjects: Mapping[Path, str], fraction: float | None,
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """(training, validation) after a share of the one has become the other. `fraction` None: by the rule above, where validation is too small."""
    wanted = wanted_of(training, fraction) if fraction is not None or len(validation) < enough_for(training) else {}
    chosen = taken(training, subjects, wanted) if any(wanted.values()) else set()
    kept = tuple(item for item in training if subject_of(item, subjects) not in chosen)
    return kept, (*validation, *(item for item in training if subject_of(item, subjects) in chosen))


def enough_for(items: Sequence[Item]) -> int:
    """Validation images that a hospital with such training images needs at least."""
    return ENOUGH_VALIDATION["masks" if any(item.mask for item in items) else "classes"]


def wanted_of(training: Sequence[Item], fraction: float | None) -> dict[int, int]:
    """Class -> images to set aside: `fraction` of each, or by the rule above."""
    classes = Counter(item.label for item in training)
    total = len(training)
    if fraction is not None:
        return {label: int(fraction * count + 0.5) for label, count in classes.items()}
    if not total:
        return {}
    enough = enough_for(training)
    share = min(max(SHARE, enough / total if enough <= _QUARTER * total else 0), MOST / total)
    wanted = {label: max(int(share * count + 0.5), _LEAST_OF_A_CLASS if count >= _FEW_OF_A_CLASS else 0) for label, count in classes.items()}
    return wanted if _LEAST <= sum(wanted.values()) <= total - _LEFT else {}
