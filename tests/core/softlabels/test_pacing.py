"""When the next question may be sent. Times are given, nobody sleeps."""

from __future__ import annotations

import random

import pytest

from fedhelp_core.softlabels.pacing import FAILURES_TO_OPEN, LONGEST_HOLD, LONGEST_PAUSE, CircuitBreaker, Pace, TokenBucket, backoff


class TestTokenBucket:
    def test_starts_are_as_far_apart_as_the_rate_says(self) -> None:
        bucket = TokenBucket(4.0)
        assert [bucket.take(10.0) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]

    def test_idle_time_is_not_saved_up(self) -> None:
        bucket = TokenBucket(4.0)
        bucket.take(10.0)
        assert [bucket.take(60.0) for _ in range(2)] == [0.0, 0.25]

    def test_without_a_rate_nobody_waits(self) -> None:
        bucket = TokenBucket(None)
        assert [bucket.take(1.0) for _ in range(100)] == [0.0] * 100


class TestCircuitBreaker:
    def test_after_failures_in_a_row_one_asks_at_a_time_and_ever_more_rarely(self) -> None:
        breaker = CircuitBreaker()
        for _ in range(FAILURES_TO_OPEN - 1):
            breaker.failed(0.0)
        assert breaker.wait(0.0) == 0.0  # still closed
        breaker.failed(0.0)
        first = breaker.wait(0.0)
        assert first > 0
        assert breaker.wait(first) == 0.0  # the probe
        assert breaker.wait(first) > 0  # everybody else waits for it
        breaker.failed(first)
        assert breaker.wait(first) == 2 * first

    def test_it_never_waits_longer_than_the_longest_pause(self) -> None:
        breaker = CircuitBreaker()
        for _ in range(FAILURES_TO_OPEN + 60):
            breaker.failed(0.0)
        assert breaker.wait(0.0) == LONGEST_PAUSE

    def test_one_success_closes_it(self) -> None:
        breaker = CircuitBreaker()
        for _ in range(FAILURES_TO_OPEN):
            breaker.failed(0.0)
        breaker.succeeded()
        assert breaker.wait(0.0) == 0.0


class TestPace:
    def test_nobody_asks_before_a_retry_after(self) -> None:
        pace = Pace(None)
        pace.failed(100.0, 7.0)
        assert [pace.wait(now) for now in (100.0, 103.0, 107.0)] == [7.0, 4.0, 0.0]

    def test_a_retry_after_of_days_is_cut_off(self) -> None:
        pace = Pace(None)
        pace.failed(0.0, 1e6)
        assert pace.wait(0.0) == LONGEST_HOLD


@pytest.mark.parametrize(("tries", "most"), [(1, 0.001), (2, 0.002), (4, 0.008)])  # FIRST_PAUSE is a millisecond in these tests
def test_backoff_is_anything_up_to_twice_as_much_after_every_failure(tries: int, most: float) -> None:
    found = [backoff(tries, random.Random(seed)) for seed in range(200)]
    assert 0.9 * most < max(found) <= most
    assert min(found) < 0.1 * most
