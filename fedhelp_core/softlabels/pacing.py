"""When the next question may be sent: rate limit, backoff, circuit breaker. Pure: times in, waits out; nobody sleeps here.

Used by `asking`, whose threads share one `Pace`. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import random
import threading

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try of a request, and before any
LONGEST_HOLD = 600.0  # seconds: a Retry-After beyond this is cut off
FAILURES_TO_OPEN = 5  # in a row, over all threads
_LOOK = 0.05  # seconds between looks of those that wait for another's probe


class TokenBucket:
    """At most `rate` starts a second on average, `burst` at once. None: no limit."""

    def __init__(self, rate: float | None, *, burst: int = 1) -> None:
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._slack = self._interval * (burst - 1)
        self._next = float("-inf")

    def take(self, now: float) -> float:
        """Take the next token, and the seconds to wait before using it."""
        self._next = max(self._next, now - self._slack)
        wait = max(0.0, self._next - now)
        self._next += self._interval
        return wait


class CircuitBreaker:
    """Open after FAILURES_TO_OPEN failures in a row: then one try at a time, each after a longer pause, until one succeeds."""

    def __init__(self) -> None:
        self._failures = 0
        self._opened = 0
        self._until = float("-inf")
        self._probing = False

    def wait(self, now: float) -> float:
        """0: go ahead, and tell `succeeded` or `failed` what came of it; else seconds after which to ask again."""
        if self._failures < FAILURES_TO_OPEN:
            return 0.0
        if self._probing:
            return _LOOK
        if now < self._until:
            return self._until - now
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        """Close it."""
        self._failures = self._opened = 0
        self._probing = False

    def failed(self, now: float) -> None:
        """Count a failure."""
        self._failures += 1
        self._probing = False
        if self._failures >= FAILURES_TO_OPEN:
            self._until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._opened)
            self._opened += 1


class Pace:
    """All of it for one teacher; threads share it."""

    def __init__(self, rate: float | None) -> None:
        self._bucket = TokenBucket(rate)
        self._breaker = CircuitBreaker()
        self._held_until = float("-inf")
        self._lock = threading.Lock()

    def wait(self, now: float) -> float:
        """Seconds after which to ask again whether a request may be tried; 0: try it after `start`'s wait."""
        with self._lock:
            return max(0.0, self._held_until - now) or self._breaker.wait(now)

    def start(self, now: float) -> float:
        """Seconds to wait before sending, once `wait` gave 0."""
        with self._lock:
            return self._bucket.take(now)

    def succeeded(self) -> None:
        """The teacher answered."""
        with self._lock:
            self._breaker.succeeded()

    def failed(self, now: float, retry_after: float | None) -> None:
        """It did not; with a Retry-After nobody asks before that."""
        with self._lock:
            self._breaker.failed(now)
            if retry_after is not None:
                self._held_until = max(self._held_until, now + min(retry_after, LONGEST_HOLD))


def backoff(tries: int, jitter: random.Random) -> float:
    """Seconds before try `tries` + 1 (full jitter: anything up to twice as much after every failure)."""
    return jitter.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)))
