"""The population stability index is nothing where nothing changed, much where it did, and chance is told apart."""

from __future__ import annotations

import numpy as np
import pytest

from fedhelp_core.deployment.reference import CONFIDENCE_BINS, INTENSITY_BINS, Seen, by_chance, counted, psi, seen


def test_images_fall_into_the_bins_that_prometheus_has_too() -> None:
    black, white = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)
    assert seen(black, 0.0, 0) == Seen(0, 0, 0) and seen(white, 1.0, 1) == Seen(9, 1, 15)
    assert seen(black + 16, 0.1, 0) == Seen(0, 0, 0), "a bin's upper edge belongs to it, as in a histogram of Prometheus"
    found = counted([Seen(0, 1, 3), Seen(9, 1, 3), Seen(9, 0, 15)], classes=2)
    assert found.confidence == (1, 0, 0, 0, 0, 0, 0, 0, 0, 2) and found.decision == (1, 2) and found.intensity[3] == 2 and found.images == 3
    assert (len(found.confidence), len(found.intensity)) == (len(CONFIDENCE_BINS), len(INTENSITY_BINS))
    assert counted([], classes=3).decision == (0, 0, 0)


def test_the_index_is_zero_of_the_same_shares_and_that_of_the_formula_of_others() -> None:
    assert psi((10, 20, 30), (10, 20, 30)) == 0
    assert psi((100_000, 300_000), (200_000, 200_000)) == pytest.approx(0.25 * np.log(3) , abs=1e-4)
    assert psi((0, 400), (400, 0)) > 5 and np.isfinite(psi((0, 400), (400, 0)))


def test_chance_alone_gives_about_what_is_said() -> None:
    rng = np.random.default_rng(1)
    shares = [0.1] * 10
    found = [psi(rng.multinomial(500, shares).tolist(), rng.multinomial(300, shares).tolist()) for _ in range(300)]
    assert np.mean(found) == pytest.approx(by_chance([50] * 10, [30] * 10), rel=0.1)
