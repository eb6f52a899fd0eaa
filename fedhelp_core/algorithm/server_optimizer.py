"""FedAvgM, FedAdam and FedYogi: the hub's own optimizer (Hsu et al. 2019, arXiv 1909.06335; Reddi et al. 2021, arXiv 2003.00295). Pure.

With Δ = average - w, what a round would change, the hub remembers a momentum m and, of Adam and Yogi, a scale s of each weight:

    FedAvgM   m' = β1 m + Δ               w' = w + η m'
    FedAdam   m' = β1 m + (1 - β1) Δ      s'² = β2 s² + (1 - β2) Δ²                      w' = w + η m' / (s' + τ)
    FedYogi   as FedAdam, with            s'² = s² - (1 - β2) Δ² sign(s² - Δ²)

At first m = 0 and s = τ, as in the paper, and no step is corrected for that start. s is kept, not s²: whatever a silo sends, it fits
into a float32. Called by server.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedhelp_core.algorithm.kernels import Floats
from fedhelp_core.config.algorithm import ServerOptimizerConfig


def momentum_factors(optimizer: ServerOptimizerConfig, *, first: bool) -> list[float]:
    """m' as a sum over w, the average and, but for the first round, m."""
    of_change = 1.0 if optimizer.kind == "momentum" else 1.0 - optimizer.beta1
    return [-of_change, of_change, *([] if first else [optimizer.beta1])]


def next_scale(optimizer: ServerOptimizerConfig) -> Callable[..., Floats]:
    """s' from w, the average and, but for the first round, s."""
    kept, start = optimizer.beta2, np.float64(optimizer.tau)

    def scale(model: Floats, average: Floats, last: Floats | np.float64 = start) -> Floats:
        squares, changes = np.square(last), np.square(average - model)
        adam = optimizer.kind == "adam"
        found: Floats = kept * squares + (1.0 - kept) * changes if adam else squares - (1.0 - kept) * changes * np.sign(squares - changes)
        return np.sqrt(found, out=found)

    return scale


def next_model(optimizer: ServerOptimizerConfig) -> Callable[..., Floats]:
    """w' from w, m' and s'; of FedAvgM from w and m'."""
    rate, tau = optimizer.step_size, optimizer.tau

    def model(model: Floats, momentum: Floats, scale: Floats | None = None) -> Floats:
        return model + rate * (momentum if scale is None else momentum / (scale + tau))

    return model
