"""One silo's work over a whole run: started, restarted after retryable ends, given up with a reason after permanent ones.

A `Supervisor` is a state machine that somebody ticks: silo_training ticks one, federation ticks all of a run's. It knows
residency (`run`: one worker for all rounds; `round`: a worker per round) and retries, not what kind of process it starts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from fedhelp_components.dispatch.request import Action, Dispatcher, Work, WorkRequest
from fedhelp_core.config import Federation, SiloEntry
from fedhelp_core.errors import PERMANENT_EXIT_CODES, JobFailed, RetryableError, RunAborted
from fedhelp_core.rounds import Run

_TICK = 0.02  # seconds between looks at the workers; a round's own hand-over goes through the store, not through here
_LONGEST_PAUSE = 30.0  # seconds; restarts wait 0.5, 1, 2, ... up to this

Say = Callable[[str], None]


class Supervisor:
    """Keeps one silo's training going until the last round is committed, or gives the silo up."""

    def __init__(self, silo: SiloEntry, federation: Federation, run: Run, dispatcher: Dispatcher, say: Say) -> None:
        self._silo = silo
        self._rounds = federation.algorithm.rounds
        self._store = federation.store
        self._run = run
        self._dispatcher = dispatcher
        self._say = say
        self._work: Work | None = None
        self._failures = 0
        self._failed_round = -1
        self._not_before = 0.0
        self.finished = False
        self.failure: str | None = None

    def tick(self) -> None:
        """One look: start what should run, judge what ended. Cheap."""
        if self.finished or time.monotonic() < self._not_before:
            return
        if self._work is None:
            self._start_next()
            return
        code = self._work.exit_code()
        if code is not None:
            self._judge(code, self._work)

    def stop(self) -> None:
        """End the worker, if one runs."""
        if self._work is not None and self._work.exit_code() is None:
            self._work.stop()

    def _start_next(self) -> None:
        commit = self._run.latest_commit()
        if commit is None:
            return
        number = commit.round + 1
        if number > self._rounds:
            self.finished = True
            return
        if self._run.update(self._silo.name, number) is not None:
            return  # answered; the next round starts with the next commit
        only = number if self._silo.dispatch.residency == "round" else None
        self._work = self._dispatcher.start(WorkRequest(
            run_id=self._run.run_id, silo=self._silo.name, action="train", store_url=self._store.url,
            endpoint_url=self._store.endpoint_url, only_round=only))

    def _judge(self, code: int, work: Work) -> None:
        self._work = None
        if code == 0:
            return
        if code == RunAborted.exit_code:
            self.finished = True
            return
        commit = self._run.latest_commit()
        number = commit.round + 1 if commit is not None else 0
        self._failures = self._failures + 1 if number == self._failed_round else 1
        self._failed_round = number
        reason = _reason(code, work)
        if code in PERMANENT_EXIT_CODES or self._failures > self._silo.dispatch.retries:
            self._give_up(number, reason)
        else:
            pause = min(_LONGEST_PAUSE, 0.5 * 2 ** (self._failures - 1))
            self._not_before = time.monotonic() + pause
            self._say(f"silo {self._silo.name}: {reason}; restart {self._failures} of {self._silo.dispatch.retries} in {pause:g} s")

    def _give_up(self, number: int, reason: str) -> None:
        self.finished = True
        self.failure = reason
        self._say(f"silo {self._silo.name}: left out from round {number} on: {reason}")
        for missed in range(number, self._rounds + 1):
            self._run.mark_absent(self._silo.name, missed, reason)


class SupervisorThread:
    """Ticks supervisors beside an aggregation in the main thread."""

    def __init__(self, supervisors: Sequence[Supervisor], run: Run, say: Say) -> None:
        self._supervisors = supervisors
        self._run = run
        self._say = say
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="supervisors", daemon=True)

    def __enter__(self) -> SupervisorThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for supervisor in self._supervisors:
            supervisor.stop()

    def _loop(self) -> None:
        try:
            while not self._stop.wait(_TICK) and not all(s.finished for s in self._supervisors):
                self._tick_all()
        except Exception as e:  # the main thread waits in the store: the abort reaches it there, and it raises this error
            self.error = e
            self._run.abort(f"the silos' supervisor failed: {e}")

    def _tick_all(self) -> None:
        for supervisor in self._supervisors:
            try:
                supervisor.tick()
            except RetryableError as e:
                self._say(f"supervisor: {e}; trying again")
                self._stop.wait(1.0)


def watch_one(supervisor: Supervisor, run: Run) -> None:
    """Tick one supervisor to its end (silo_training).

    Raises:
        RunAborted: the run was ended for everyone.
    """
    while not supervisor.finished:
        run.raise_if_aborted()
        supervisor.tick()
        time.sleep(_TICK)
    run.raise_if_aborted()


def run_everywhere(
    action: Action, federation: Federation, run_id: str, dispatcher: Dispatcher, say: Say, done: Callable[[str], bool],
) -> dict[str, str]:
    """Start `action` in every silo at once (except those where `done` says so) and wait; silo -> reason for those that failed."""
    failed: dict[str, str] = {}
    failures = dict.fromkeys(federation.silo_names, 0)
    retries = {silo.name: silo.dispatch.retries for silo in federation.silos}

    def start(silo: str) -> Work:
        return dispatcher.start(WorkRequest(
            run_id=run_id, silo=silo, action=action, store_url=federation.store.url, endpoint_url=federation.store.endpoint_url))

    working = {silo: start(silo) for silo in federation.silo_names if not done(silo)}
    while working:
        for silo, work in list(working.items()):
            code = work.exit_code()
            if code is None:
                continue
            del working[silo]
            if code == 0:
                continue
            reason = _reason(code, work)
            failures[silo] += 1
            if code in PERMANENT_EXIT_CODES or failures[silo] > retries[silo]:
                failed[silo] = reason
            else:
                say(f"silo {silo}: {reason}; restart {failures[silo]} of {retries[silo]}")
                working[silo] = start(silo)
        time.sleep(_TICK)
    return failed


def _reason(code: int, work: Work) -> str:
    """The worker's own error lines, or the end of its log, as one line."""
    tail = work.log_tail().splitlines()
    errors = [line.split("error: ", 1)[1] for line in tail if ": error: " in line]
    if errors and code > 0:
        return "; ".join(errors)
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how} ({tail[-1].strip()})" if tail else how


def require_none_failed(failed: dict[str, str], what: str) -> None:
    """Raise one error that names every silo in `failed`.

    Raises:
        JobFailed: `failed` is not empty.
    """
    if failed:
        raise JobFailed("\n".join(f"silo {silo}: {what} failed: {reason}" for silo, reason in failed.items()))
