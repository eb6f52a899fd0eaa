"""What the hub asks of a silo, and what every way of asking it must offer. Pure; imported by all dispatchers.

A silo's chart (or silo.yaml) fixes image, data, state and limits; a request carries arguments alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["check", "train", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class WorkRequest:
    """One piece of work in one silo."""

    run_id: str
    silo: str
    action: Action
    store_url: str
    endpoint_url: str | None = None
    only_round: int | None = None
    """train: this round alone (residency `round`); None: all rounds (residency `run`)."""

    def arguments(self) -> list[str]:
        """The worker's command line, without the silo's own `--silo-config`."""
        arguments = [self.action, "--run", self.run_id, "--store", self.store_url]
        if self.endpoint_url is not None:
            arguments += ["--endpoint-url", self.endpoint_url]
        if self.only_round is not None:
            arguments += ["--round", str(self.only_round)]
        return arguments


class Work(Protocol):
    """A piece of work that was started."""

    def exit_code(self) -> int | None:
        """None while it runs; 0 done; 10-19 permanent, 30-39 retryable (fedhelp_core.errors); negative: killed by that signal."""

    def stop(self) -> None:
        """End it; returns at once."""

    def log_tail(self, lines: int = 20) -> str:
        """The end of what it printed."""


class Dispatcher(Protocol):
    """A way to start work in silos."""

    def start(self, request: WorkRequest) -> Work:
        """Start `request`, or adopt the same request if it runs already."""

    def close(self) -> None:
        """Stop everything that this dispatcher started."""
