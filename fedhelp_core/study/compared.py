"""What a row of a study compares: a method, which is what silos run, and perhaps another step of the hub (docs/decisions/0034).

A row is a method's name, `METHOD+STEP`, or one of the names that the literature has for FedAvg with such a step. Called by study.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedhelp_core.errors import ConfigError
from fedhelp_core.registry.methods import METHOD_PARTS, METHODS, MethodParts

STEPS: Mapping[str, Mapping[str, str]] = {
    "momentum": {"algorithm.server_optimizer.kind": "momentum"}, "adam": {"algorithm.server_optimizer.kind": "adam"},
    "yogi": {"algorithm.server_optimizer.kind": "yogi"}, "fednova": {"algorithm.aggregation": "fednova"}}
NAMED: Mapping[str, str] = {
    "fedavgm": "fedavg+momentum", "fedadam": "fedavg+adam", "fedyogi": "fedavg+yogi", "fednova": "fedavg+fednova"}
SAME_MATHEMATICS = {"fedhelp-symmetric": "fedhelp-no-rank"}
"""Methods that docs/algorithm.md defines as the same computation: done once, shown under both names."""


@dataclass(frozen=True)
class Compared:
    """A row, taken apart."""

    method: str
    step: str = ""
    """Of `STEPS`; '': the federation's own."""

    @property
    def parts(self) -> MethodParts:
        """What of FedHelp the method runs."""
        return METHOD_PARTS[self.method]

    @property
    def settings(self) -> dict[str, str]:
        """Fields of the federation that make it this row."""
        return {"algorithm.method": self.method, **STEPS.get(self.step, MappingProxyType({}))}

    @property
    def computed_as(self) -> str:
        """The row whose numbers this one has."""
        method = SAME_MATHEMATICS.get(self.method, self.method)
        return f"{method}+{self.step}" if self.step else method


def compared(row: str) -> Compared:
    """`row`, taken apart.

    Raises:
        ConfigError: it is no such row.
    """
    method, plus, step = NAMED.get(row, row).partition("+")
    if method not in METHODS or (plus and step not in STEPS):
        raise ConfigError(
            f"methods: {row!r} is unknown; known: {', '.join(METHODS)}, each also with +{', +'.join(STEPS)}, and {', '.join(NAMED)}")
    if plus and not METHOD_PARTS[method].averaged:
        raise ConfigError(f"methods: {row!r}: method {method!r} sends nothing to the hub, so the hub has no step to take; take '+{step}' away")
    return Compared(method, step)
