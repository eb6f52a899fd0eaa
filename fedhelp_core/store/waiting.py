"""Looking at a store again and again until something is there. Called by silos, by the closing of rounds and by supervisors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fedhelp_core.store.base import Store

_T = TypeVar("_T")


class Poller:
    """Pauses between two looks at a store that grow with the time waited: at most a tenth of it is lost by looking late."""

    def __init__(self, store: Store) -> None:
        self._shortest, self._longest = store.pauses
        self._started = time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since construction or `reset`."""
        return time.monotonic() - self._started

    def reset(self) -> None:
        """Look often again: something has just happened."""
        self._started = time.monotonic()

    @property
    def interval(self) -> float:
        """Seconds till the next look."""
        return min(self._longest, max(self._shortest, self.waited / 10))

    def pause(self, *, until: float | None = None) -> None:
        """Sleep till the next look, not beyond the monotonic time `until`."""
        seconds = self.interval
        if until is not None:
            seconds = min(seconds, max(0.0, until - time.monotonic()))
        time.sleep(seconds)


def wait_for(store: Store, look: Callable[[], _T | None], *, timeout: float | None = None) -> _T | None:
    """What `look` gives as soon as that is not None; None after `timeout` seconds (null: never)."""
    poller = Poller(store)
    until = None if timeout is None else time.monotonic() + timeout
    while (found := look()) is None:
        if until is not None and time.monotonic() >= until:
            return None
        poller.pause(until=until)
    return found
