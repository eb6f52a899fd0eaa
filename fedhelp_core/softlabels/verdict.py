"""Whether a teacher's answers can teach anything: constant and near-uniform ones are told. Pure; called by trial and prefetch.

Shapes: N images, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FEWEST = 8
"""Images below which nothing is said: a few may well be alike."""
_SAME = 1e-4  # of probabilities: half a float16's last digit, and less than any picture changes a network's answer
_NO_OPINION = 0.98  # of the entropy of a teacher that guesses


def verdict(answers_NC: NDArray[np.float64], *, masks: bool = False) -> list[str]:
    """What looks wrong with these probabilities, a sentence each; of masks, with each foreground's mean."""
    images, classes = answers_NC.shape
    if images < FEWEST:
        return []
    if says_always_the_same(answers_NC):
        return [f"answers the same for {images} of {images} images, whatever they show; look at its preprocessing and its weights"]
    if masks:
        return []
    favourites = answers_NC.argmax(axis=1)
    found = []
    if (favourites == favourites[0]).all():
        found.append(f"says class {favourites[0]} of {images} of {images} images; look at its preprocessing, or take public images of several"
                     " classes")
    entropies_N = -(answers_NC * np.log(answers_NC.clip(1e-12))).sum(axis=1) / math.log(max(2, classes))
    if entropies_N.mean() > _NO_OPINION:
        found.append(f"hardly decides between {classes} classes on {images} images (entropy {entropies_N.mean():.2f} of 1); is it asked with its own"
                     " preprocessing and weights?")
    return found


def says_always_the_same(answers_NC: NDArray[np.float64]) -> bool:
    """Whether no image changes the answer."""
    return len(answers_NC) >= FEWEST and bool(np.ptp(answers_NC, axis=0).max() < _SAME)
