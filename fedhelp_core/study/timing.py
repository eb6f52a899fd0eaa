"""How long a study still takes: by what its finished simulations took, else by one round that is timed for it. Called by study.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedhelp_core.report.text import duration
from fedhelp_core.study.compared import compared

# Rough cost of a round beside fedavg's, by the time that docs/results.md measured.
_COST = {"local": 1.0, "fedavg": 1.0, "fedprox": 1.1, "scaffold": 1.1}
_COST_FEDHELP = 2.5
_WORTH_TIMING = 100  # rounds in all: timing one is then at most a hundredth of the study


class Costly(Protocol):
    """A simulation, as far as its cost depends on it."""

    @property
    def method(self) -> str:
        """Its method."""


def cost_of(cell: Costly) -> float:
    """Of a round, in rounds of fedavg."""
    return _COST.get(compared(cell.method).method, _COST_FEDHELP)


@dataclass(frozen=True, kw_only=True)
class StudyTime:
    """What is known before the first simulation: seconds of a round of fedavg on this machine, None where nobody has timed one."""

    rounds: int
    workers: int
    round_seconds: float | None

    def of(self, cells: Sequence[Costly]) -> float | None:
        """Seconds that `cells` take; None: nobody can tell."""
        if self.round_seconds is None:
            return None
        return self.round_seconds * self.rounds * sum(map(cost_of, cells)) / min(self.workers, max(1, len(cells)))

    def said(self, todo: Sequence[Costly]) -> str:
        """One sentence before the first of `todo`; '' where it would say nothing."""
        seconds = self.of(todo)
        if seconds is None:
            return ""
        side_by_side = f", {self.workers} at a time" if self.workers > 1 else ""
        return f"{len(todo)} simulations of {self.rounds} rounds{side_by_side}: about {duration(seconds)}"


def seconds_a_round(known: Mapping[Costly, float], rounds: int, threads: int) -> float | None:
    """Of fedavg, by the processor seconds of finished simulations; None without any."""
    costs = sum(cost_of(cell) * rounds for cell in known)
    return sum(known.values()) / costs / threads if costs else None


def timed_round(todo: Sequence[Costly], rounds: int, simulate_one: Callable[[], object]) -> float | None:
    """Seconds of a round of fedavg, by `simulate_one`, one round of the first of `todo`; None where the whole study is not worth that."""
    if len(todo) * rounds < _WORTH_TIMING:
        return None
    started = time.monotonic()
    simulate_one()
    return (time.monotonic() - started) / cost_of(todo[0])


def left_after(done_cost: float, all_cost: float, seconds: float) -> str:
    """'; about 2 h 5 min left' after `done_cost` of `all_cost` took `seconds`; '' at the end."""
    return f"; about {duration(seconds * (all_cost - done_cost) / done_cost)} left" if 0 < done_cost < all_cost else ""
