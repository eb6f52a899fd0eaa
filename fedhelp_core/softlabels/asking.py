"""Ask one teacher about images that the ledger does not know, from several threads: paced, retried, within its budget.

Called by `prefetch`. Every request is recorded in the ledger before it is sent and its answer before the same thread sends
the next one, so a kill leaves at most one request per thread in doubt. The first error ends the asking: no thread starts
another request, those in flight are waited for and recorded. Shapes: N images.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedhelp_core import telemetry
from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.errors import PermanentError, TeacherError, TeacherUnavailable
from fedhelp_core.softlabels.answers import checked_answers
from fedhelp_core.softlabels.ledger import REFUSED, UNUSABLE, BudgetReached, Ledger, batch_sha
from fedhelp_core.softlabels.pacing import Pace, backoff
from fedhelp_core.softlabels.public_images import PublicImages
from fedhelp_core.softlabels.teachers import BatchTooLarge, MaybeAnswered, NotAnswered, Question, Readiness, Teacher

_LONGEST_STOP = 10.0  # seconds that an interrupted process waits for requests in flight; what is late is in doubt


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the asking is, after a request."""

    teacher: str
    done: int
    """Images answered now."""
    total: int
    """Images to ask about now."""
    seconds_left: float
    """At the pace so far."""
    cost: float
    """Spent now, in `currency`."""
    currency: str

    def __str__(self) -> str:
        """One line for people."""
        cost = f", {self.cost:.2f} {self.currency} so far" if self.cost else ""
        return f"teacher {self.teacher}: {self.done} of {self.total} images, {self.seconds_left:.0f} s left{cost}"


def prepared(teacher: Teacher, question: Question) -> Readiness:
    """`teacher.prepare`, tried again while the teacher is away for a moment."""
    jitter = random.Random()
    for tries in range(1, teacher.config.retries + 1):
        try:
            return teacher.prepare(question)
        except TeacherUnavailable:
            time.sleep(backoff(tries, jitter))
    return teacher.prepare(question)


class Asking:
    """One teacher's share of a prefetch.

    Args:
        teacher: Prepared already; `readiness` is what that found.
        readiness: Its limits.
        ledger: Its ledger.
        images: The public images.
        run: Which run asks, for the account.
        shards: How many processes share the teacher's limits.
        progress: Called after every answer, by one thread at a time.
    """

    def __init__(
        self, teacher: Teacher, readiness: Readiness, ledger: Ledger, images: PublicImages, *, run: str, shards: int = 1,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._teacher = teacher
        self._config: TeacherConfig = teacher.config
        self._readiness = readiness
        self._ledger = ledger
        self._images = images
        self._run = run
        self._progress = progress
        self._threads = max(1, readiness.concurrency // shards)
        rate = self._config.requests_per_second
        self._pace = Pace(None if rate is None else rate / shards)
        self._highest = ledger.highest_number(self._config.budget, batch_size=readiness.batch_size)
        self._jitter = random.Random()  # nothing but waits comes from it
        self._batches: deque[list[int]] = deque()
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._error: BaseException | None = None
        self._done = self._total = 0
        self._cost = 0.0
        self._started = 0.0

    def ask(self, unseen: Sequence[int]) -> None:
        """Have the images at these positions answered and recorded.

        Raises:
            TeacherUnavailable: the teacher stays away; what it answered is recorded.
            TeacherError, AccessDenied: it answered with something unusable, or refuses us.
            BudgetReached: one request more would cost too much.
        """
        size = self._readiness.batch_size
        self._batches.extend(list(unseen[start : start + size]) for start in range(0, len(unseen), size))
        self._total, self._started = len(unseen), time.monotonic()
        threads = [
            threading.Thread(target=self._work, name=f"ask-{self._config.name}-{i}", daemon=True)
            for i in range(min(self._threads, len(self._batches)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C, SIGTERM
            self._stop.set()
            until = time.monotonic() + _LONGEST_STOP
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise
        if self._error is not None:
            raise self._budget_sentence(self._error)

    def _work(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._ask_about(batch)
        except _Stopped:
            pass
        except BaseException as e:
            with self._lock:
                self._error = self._error or e
            self._stop.set()

    def _next(self) -> list[int] | None:
        with self._lock:
            return self._batches.popleft() if self._batches and not self._stop.is_set() else None

    def _ask_about(self, batch: list[int]) -> None:
        """One batch, until it is answered, given up, or split."""
        hashes, pixels_NHWC = [self._images.hashes[i] for i in batch], self._images.pixels(batch)
        number: int | None = None
        refusals = 0
        try:
            for tries in range(1, self._config.retries + 2):
                self._wait_for_turn()
                if number is None:
                    number, refusals = self._ledger.begin(hashes, run=self._run, highest=self._highest), 0
                    self._spend(len(batch))
                started = time.monotonic()
                try:
                    answer = self._teacher.ask(pixels_NHWC, request_id=batch_sha(hashes))
                    answers = checked_answers(answer, self._config, self._ledger.encoding, len(batch))
                except TeacherUnavailable as e:
                    number, refusals = self._missed(e, tries, number, refusals)
                    continue
                seconds = time.monotonic() - started
                self._ledger.record(
                    number, hashes, answers, run=self._run, tries=refusals + 1, seconds=seconds, served_version=self._readiness.served_version)
                self._answered(len(batch), seconds)
                return
        except _Stopped:
            if number is not None:
                self._ledger.fail(number, REFUSED, "refused, and not tried again since the asking ended")
            raise
        except BatchTooLarge as e:
            assert number is not None
            self._split(batch, number, e)
        except BudgetReached:
            raise
        except PermanentError as e:
            if number is not None:
                outcome = UNUSABLE if isinstance(e, TeacherError) else REFUSED
                self._ledger.fail(number, outcome, str(e))
                telemetry.teacher_failed(self._config.name, outcome)
            raise

    def _wait_for_turn(self) -> None:
        while (seconds := self._pace.wait(time.monotonic())) > 0:
            self._pause(seconds)
        self._pause(self._pace.start(time.monotonic()))

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise _Stopped

    def _missed(self, error: TeacherUnavailable, tries: int, number: int, refusals: int) -> tuple[int | None, int]:
        """After a try without an answer: the request to go on with (None: a new one, for this one is in doubt), and its refusals."""
        retry_after = error.retry_after if isinstance(error, NotAnswered) else None
        self._pace.failed(time.monotonic(), retry_after)
        in_doubt = isinstance(error, MaybeAnswered)
        telemetry.teacher_failed(self._config.name, "in_doubt" if in_doubt else REFUSED)
        if tries > self._config.retries:
            if not in_doubt:
                self._ledger.fail(number, REFUSED, str(error))
            raise error
        self._pause(backoff(tries, self._jitter))
        return (None, 0) if in_doubt else (number, refusals + 1)

    def _split(self, batch: list[int], number: int, error: BatchTooLarge) -> None:
        """Ask about both halves of what was too large."""
        self._ledger.fail(number, REFUSED, str(error))
        if len(batch) == 1:
            raise error
        self._pace.succeeded()
        self._spend(-len(batch))
        middle = len(batch) // 2
        with self._lock:
            self._batches.extendleft([batch[middle:], batch[:middle]])

    def _spend(self, images: int) -> None:
        budget = self._config.budget
        with self._lock:
            self._cost += (budget.price_per_request if images > 0 else -budget.price_per_request) + images * budget.price_per_image

    def _answered(self, images: int, seconds: float) -> None:
        self._pace.succeeded()
        telemetry.teacher_asked(self._config.name, images, seconds)
        with self._lock:
            self._done += images
            if self._progress is not None:
                elapsed = time.monotonic() - self._started
                self._progress(Progress(
                    teacher=self._config.name, done=self._done, total=self._total, seconds_left=elapsed / self._done * (self._total - self._done),
                    cost=self._cost, currency=self._config.budget.currency))

    def _budget_sentence(self, error: BaseException) -> BaseException:
        if not isinstance(error, BudgetReached):
            return error
        budget, account = self._config.budget, self._ledger.account(self._config.budget)
        caps = [f"max_requests {budget.max_requests}"] if budget.max_requests is not None else []
        caps += [f"max_cost {budget.max_cost:g} {budget.currency}"] if budget.max_cost is not None else []
        return BudgetReached(
            f"teacher {self._config.name!r}: its budget ({', '.join(caps)}) allows no further request after {account.requests + account.in_doubt}"
            f" requests and {account.cost:.2f} {budget.currency}; {self._total - self._done} of {self._total} images are left: raise the budget"
            " in public_set.teachers and run again, nothing that is answered is asked again")


class _Stopped(Exception):
    """Another thread has met an error, or the process is to end."""
