"""Eq 7 of arXiv 2412.19654: w = Σ_k a_k w_k. Arrays in, arrays out. Called by server.py, and by protocol/averaging.py on files.

Floating tensors are summed in float64 in the order given and cast back; integer and bool tensors (batch counters) take the
maximum. Two other rules bound what a minority can do: the median of each coordinate, and its mean without the outermost
values (Yin et al. 2018, arXiv 1803.01498). Arithmetic on one element does not depend on the piece that it comes in, so piece
size changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedhelp_core.algorithm.kernels import Kernel, SortingKernel, SumKernel, compute_tensor
from fedhelp_core.config.algorithm import Aggregation, AlgorithmConfig, ServerOptimizerConfig
from fedhelp_core.errors import WeightsError
from fedhelp_core.registry.methods import METHOD_PARTS
from fedhelp_core.weights.header import Weights, WeightsSpec

_AS_IT_IS = ServerOptimizerConfig()


@dataclass(frozen=True)
class Rule:
    """How updates become the next model. Only `mean` and `fednova` look at shares."""

    aggregation: Aggregation = "mean"
    trim_share: float = 0.2
    """`trimmed-mean`: share of the updates that is left out at either end of each coordinate; at least one, while any is left."""
    optimizer: ServerOptimizerConfig = _AS_IT_IS
    """What the hub makes of the average."""
    control_variates_of: float | None = None
    """Learning rate of the silos' steps, where the hub keeps SCAFFOLD's control variate; None: it keeps none."""
    momentum: float = 0.0
    """Of the silos' steps: what FedNova counts them by."""
    pull: float = 0.0
    """Share of its way that a silo's step goes back to the global model, under FedProx: the same."""

    def trimmed(self, updates: int) -> int:
        """How many of so many updates are left out at either end."""
        return min(max(1, math.floor(self.trim_share * updates)), (updates - 1) // 2)

    @property
    def looks_back(self) -> bool:
        """Whether the next model depends on more than the updates: on the model that they started from, or on rounds before."""
        return self.by_steps or self.optimizer.kind != "none"

    @property
    def by_steps(self) -> bool:
        """Whether an update counts by what it changed in a step, so that few steps make it loud."""
        return self.aggregation == "fednova" or self.control_variates_of is not None


MEAN = Rule()


def rule_of(algorithm: AlgorithmConfig) -> Rule:
    """The rule that a federation has chosen."""
    parts, optimizer = METHOD_PARTS[algorithm.method], algorithm.optimizer
    proximal = parts.proximal and optimizer.kind == "sgd"
    return Rule(
        algorithm.aggregation, algorithm.trim_share, algorithm.server_optimizer,
        control_variates_of=optimizer.learning_rate if parts.control_variates else None,
        momentum=optimizer.momentum, pull=optimizer.learning_rate * algorithm.proximal_weight if proximal else 0.0)


def average_arrays(updates: Sequence[Weights], shares: Sequence[float], rule: Rule = MEAN) -> Weights:
    """Eq 7 on arrays: Σ_k shares[k] · updates[k], names, dtypes and shapes kept. Shares are at least 0 and sum to 1.

    Another `rule` than the mean takes each coordinate's median or trimmed mean instead.

    Raises:
        WeightsError: the updates differ in names, shapes or dtypes.
    """
    check_shares(shares, len(updates))
    check_alike([WeightsSpec.from_weights(update, "") for update in updates])
    kernel = kernel_for(shares, rule)
    return {name: compute_tensor(kernel, [update[name] for update in updates]) for name in updates[0]}


def shares_of(samples: Sequence[int], weighting: str) -> list[float]:
    """a_k of Eq 7: 1/K each (`uniform`), or n_k/Σn (`samples`)."""
    total = sum(samples)
    return [n / total if weighting == "samples" else 1.0 / len(samples) for n in samples]


def kernel_for(shares: Sequence[float], rule: Rule) -> Kernel:
    """What computes `rule` with these shares: Eq 7, its median or its trimmed mean."""
    updates = len(shares)
    if rule.aggregation == "median":
        return SortingKernel(updates, (updates - 1) // 2)
    return SortingKernel(updates, rule.trimmed(updates)) if rule.aggregation == "trimmed-mean" else SumKernel(shares)


def check_shares(shares: Sequence[float], updates: int) -> None:
    """Refuse what cannot be a_k of Eq 7.

    Raises:
        ValueError: not one share an update, one below 0, or another sum than 1.
    """
    if updates == 0 or len(shares) != updates:
        raise ValueError(f"averaging: one share per update and at least one update expected, got {updates} updates and {len(shares)} shares")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-9):
        raise ValueError(f"averaging: shares of at least 0 that sum to 1 expected, got a sum of {math.fsum(shares)!r}")


def check_alike(specs: Sequence[WeightsSpec]) -> None:
    """Refuse to average what is of several architectures.

    Raises:
        WeightsError: names, shapes or dtypes differ; the message names the first.
    """
    for number, spec in enumerate(specs[1:], start=2):
        if dict(spec.tensors) != dict(specs[0].tensors):
            odd = sorted(set(spec.tensors.items()) ^ set(specs[0].tensors.items()))[0][0]
            raise WeightsError(f"averaging: update {number} of {len(specs)} differs from the first in tensor {odd!r}; one architecture expected")
