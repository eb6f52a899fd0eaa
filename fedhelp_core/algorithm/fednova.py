"""FedNova: silos that take more steps do not pull the model further (Wang et al. 2020, arXiv 2007.07481). Pure. Called by server.py.

With d_k = (w_k - w) / ‖a_k‖₁, what silo k changed in a step, the next model is w + τ Σ_k p_k d_k, with τ = Σ_k p_k ‖a_k‖₁ and the
shares p_k of Eq 7. The hub counts the steps itself, from the number of images that each silo's check found: silos do not report them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=1024)  # a loop over the steps, and the same for a silo in every round
def equivalent_steps(steps: int, momentum: float = 0.0, pull: float = 0.0) -> float:
    """‖a‖₁: how far a gradient of one throughout moves a weight in `steps` steps, in learning rates.

    Plain steps count one each. With momentum each step goes on in the later ones; with FedProx each goes back by `pull` (learning rate
    times μ) of the way so far. The moments of Adam are not looked at: a step of its counts one.
    """
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0 - pull * moved
        moved += velocity
    return moved


def factors(shares: Sequence[float], steps: Sequence[float]) -> list[float]:
    """Factors of the model that the silos started from, then of each update: w + Σ_k b_k (w_k - w) with b_k = p_k τ / ‖a_k‖₁."""
    effective = math.fsum(share * count for share, count in zip(shares, steps, strict=True))
    of_updates = [share * effective / count for share, count in zip(shares, steps, strict=True)]
    return [1.0 - math.fsum(of_updates), *of_updates]
