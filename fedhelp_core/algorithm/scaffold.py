"""SCAFFOLD: each gradient is corrected by how the silo's mean gradient differs from all silos' (Karimireddy et al. 2020, arXiv 1910.06378).

A silo adds c - c_k to the gradient of each step, then sets c_k' = c_k - c + (w - w_k) / (K η), option II of the paper, for K steps of
rate η from w to w_k. The hub keeps c = Σ_k p_k c_k, over all silos. It needs nothing of a silo but its update to do so: it knows w, c, K
and η, so c_k' - c_k = (w - w_k) / (K η) - c. No control variate leaves a silo. Pure. Called by local_update.py and server.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the hub has no PyTorch
    from torch import Tensor, nn

OWN, BEFORE = "control_variate/", "control_variate_before/"
"""Prefixes of a silo's state: its control variate after the round, and before it."""


class ControlVariates:
    """A silo's side of one round. `control`: c of each weight that travels; all others are trained without a correction."""

    def __init__(self, model: nn.Module, control: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        self._weights = {name: weight for name, weight in model.named_parameters() if name in control}
        self._start = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._own = {name: self._like(name, kept.get(OWN + name)) for name in self._weights}
        self._corrections = {name: self._like(name, control[name]) - self._own[name] for name in self._weights}

    def correct_gradients_(self) -> None:
        """Add c - c_k to the gradient of every weight, in place."""
        for name, weight in self._weights.items():
            assert weight.grad is not None
            weight.grad.add_(self._corrections[name])

    def kept(self, *, steps: int, learning_rate: float) -> dict[str, Tensor]:
        """For the silo's state: c_k' after so many steps, and c_k."""
        after = {
            name: (self._start[name] - weight.detach()).div_(steps * learning_rate).sub_(self._corrections[name])
            for name, weight in self._weights.items()}
        return {OWN + name: value for name, value in after.items()} | {BEFORE + name: value for name, value in self._own.items()}

    def _like(self, name: str, value: Tensor | None) -> Tensor:
        """`value`, or zero, where the weight lies and as it lies."""
        found = self._weights[name].detach().clone()
        return found.zero_() if value is None else found.copy_(value)


def taken_back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A silo's state whose last round the hub did not take: its control variate is again what the hub's c has of it."""
    before = {OWN + name.removeprefix(BEFORE): value for name, value in tensors.items() if name.startswith(BEFORE)}
    return {name: value for name, value in tensors.items() if not name.startswith((OWN, BEFORE))} | before


def factors(standing: Sequence[float], steps: Sequence[int], learning_rate: float, *, first: bool) -> list[float]:
    """c' as a sum over w, each update and, but for the first round, c. `standing`: p_k of who answered, among all silos."""
    of_updates = [share / (count * learning_rate) for share, count in zip(standing, steps, strict=True)]
    return [math.fsum(of_updates), *(-factor for factor in of_updates), *([] if first else [1.0 - math.fsum(standing)])]
