"""What the hub asks of a silo, and what every way of asking it must offer. Pure; imported by all dispatchers.

A silo's chart (or silo.yaml) fixes image, data, state and limits; a request carries arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import PERMANENT_EXIT_CODES
from fedhelp_core.printable import printable

Action = Literal["check", "train", "evaluate"]

SILO_CONFIG_VARIABLE = "FEDHELP_SILO_CONFIG"
"""Names the hospital's silo.yaml inside a worker's container."""

_SHORTEST_DEADLINE = 3600  # seconds for check and evaluate, which no round's deadline bounds


@dataclass(frozen=True, kw_only=True)
class WorkRequest:
    """One piece of work in one silo."""

    run_id: str
    entry: SiloEntry
    """The silo, as the federation has it."""
    action: Action
    store_url: str
    endpoint_url: str | None = None
    only_round: int | None = None
    """train: this round alone (residency `round`); None: all rounds (residency `run`)."""
    deadline_s: int
    """Seconds after which the work is of no use to anybody: whatever runs it ends it then."""
    lease_s: float
    """Seconds without a sign of the hub (fedhelp_core/protocol/lease.py) after which the worker ends itself."""

    @property
    def silo(self) -> str:
        """Its name."""
        return self.entry.name

    def arguments(self) -> list[str]:
        """The worker's command line, without the silo's own `--silo-config`."""
        arguments = [self.action, "--run", self.run_id, "--store", self.store_url]
        if self.endpoint_url is not None:
            arguments += ["--endpoint-url", self.endpoint_url]
        if self.only_round is not None:
            arguments += ["--round", str(self.only_round)]
        return [*arguments, "--lease", f"{self.lease_s:g}"]


def request_for(federation: Federation, run_id: str, entry: SiloEntry, action: Action, only_round: int | None = None) -> WorkRequest:
    """The request for `action` in a silo: the same federation and run always give the same one, so that a restarted hub finds its work again."""
    seconds = federation.protocol.round_deadline
    if action != "train":
        seconds = max(seconds, _SHORTEST_DEADLINE)
    elif only_round is None:
        seconds *= federation.algorithm.rounds
    return WorkRequest(
        run_id=run_id, entry=entry, action=action, store_url=federation.store.url, endpoint_url=federation.store.endpoint_url,
        only_round=only_round, deadline_s=math.ceil(seconds), lease_s=federation.protocol.lease)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a piece of work ended."""

    exit_code: int | None
    """0 done; 10-19 permanent, 30-39 retryable (fedhelp_core.errors); negative: killed by that signal; None: no process said
    anything, since the work was taken away (deleted, evicted, stopped)."""
    reason: str = ""
    """One line for people, which all of the run's parties may read."""
    where: str = ""
    """For whoever started the work on this machine: where all of it is."""
    late: bool = False
    """It was ended by a deadline."""

    def __str__(self) -> str:
        return f"{self.reason}; {self.where}" if self.where else self.reason

    @property
    def done(self) -> bool:
        """Whether the worker did what was asked."""
        return self.exit_code == 0

    @property
    def permanent(self) -> bool:
        """Whether trying again is useless."""
        return self.exit_code in PERMANENT_EXIT_CODES

    @property
    def disrupted(self) -> bool:
        """Whether it was taken away from outside: it starts again, and that counts as no failure."""
        return self.exit_code is None


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a piece of work does not run yet."""

    reason: str
    since: str = ""
    """ISO 8601, by the clock of whoever knows: the silo's API server."""

    def __str__(self) -> str:
        return f"{self.reason} (since {self.since})" if self.since else self.reason


class Work(Protocol):
    """A piece of work that was started. Both looks are cheap: they answer from what is known and let others find out more."""

    def outcome(self) -> Outcome | None:
        """None while it runs or waits."""

    def waiting(self) -> Waiting | None:
        """Why it does not run yet; None while it runs."""

    def stop(self) -> None:
        """End it, in the end by force; returns at once."""


class Dispatcher(Protocol):
    """A way to start work in silos."""

    def start(self, request: WorkRequest) -> Work:
        """Start `request`, or adopt the same request if it runs already. What is wrong with one silo is its work's outcome."""

    def close(self) -> None:
        """Stop everything that this dispatcher started and that has not ended."""


def exit_reason(code: int, log_tail: Sequence[str]) -> str:
    """The worker's own error lines, or how it ended and the last thing that it printed, as one line."""
    errors = [line.split("error: ", 1)[1] for line in log_tail if ": error: " in line]
    if errors and code > 0:
        return printable("; ".join(errors))
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    said = [line.strip() for line in log_tail if line.strip()]
    return printable(f"{how} ({said[-1]})") if said else how
