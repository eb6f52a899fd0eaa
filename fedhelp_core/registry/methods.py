"""The compared methods, and which parts of FedHelp each runs. Data only: the algorithm, the config and the study read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal[
    "local", "fedavg", "fedprox", "scaffold", "fedhelp", "fedhelp-no-api", "fedhelp-no-rank", "fedhelp-symmetric", "fedhelp-one-way"]
METHODS: tuple[str, ...] = get_args(Method)
VALIDATION_SCORE = "validation_score"
"""A silo's metric of a round: the headline metric, at argmax, of the model that the round began with, on its validation images."""


@dataclass(frozen=True, kw_only=True)
class MethodParts:
    """Which parts of FedHelp a method runs: what tells the compared methods and ablations apart."""

    soft_labels: bool = False
    """Eq 2 in small silos."""
    large_model: bool = False
    """Eq 3-4 in large silos: a large model is kept there."""
    help_large: bool = False
    """The proxy's knowledge enters Eq 4 (its KL and rank terms)."""
    rank: bool = False
    """The rank term, Eq 5."""
    proximal: bool = False
    """FedProx's pull to the global model."""
    control_variates: bool = False
    """SCAFFOLD's correction of each gradient; the hub keeps the mean of the silos' control variates."""
    averaged: bool = True
    """Updates are averaged; False for `local`."""

    @property
    def metrics(self) -> frozenset[str]:
        """What a silo says of a round: the losses of its kind of local update, and how long it took."""
        large = {"proxy_loss", "large_loss"} if self.large_model else set()
        public = {"public_loss"} if self.soft_labels else set()
        return frozenset({"private_loss", "seconds", VALIDATION_SCORE, *large, *public})


METHOD_PARTS: Mapping[str, MethodParts] = {
    "local": MethodParts(averaged=False),
    "fedavg": MethodParts(),
    "fedprox": MethodParts(proximal=True),
    "scaffold": MethodParts(control_variates=True),
    "fedhelp": MethodParts(soft_labels=True, large_model=True, help_large=True, rank=True),
    "fedhelp-no-api": MethodParts(large_model=True, help_large=True, rank=True),
    "fedhelp-no-rank": MethodParts(soft_labels=True, large_model=True, help_large=True),
    # As docs/algorithm.md words it, symmetric (plain KL both ways, no rank) is the same mathematics as no-rank.
    "fedhelp-symmetric": MethodParts(soft_labels=True, large_model=True, help_large=True),
    "fedhelp-one-way": MethodParts(soft_labels=True, large_model=True),
}
