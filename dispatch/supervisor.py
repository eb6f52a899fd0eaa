"""One silo's work over a whole run: started, restarted after retryable ends, given up with a reason after permanent ones.

A `Supervisor` is a state machine that somebody ticks: silo_training ticks one, federation ticks all of a run's. It knows
residency (`run`: one worker for all rounds; `round`: a worker per round) and retries, not what kind of process it starts.
Whoever ticks also keeps the lease by which workers know that somebody still wants them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from fedhelp_core.config.dispatch import SiloEntry
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import HubSilent, JobFailed, RetryableError, RunAborted, public_half
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.lease import Lease
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.waiting import Poller
from fedhelp_dispatch.request import Action, Dispatcher, Outcome, Waiting, Work, request_for

_TICK = 0.02  # seconds between looks at forked workers; a round's own hand-over goes through the store, not through here
_REMOTE_TICK = 0.2  # the same at Jobs, whose pods need seconds
_LONGEST_PAUSE = 30.0  # seconds; restarts wait 0.5, 1, 2, ... up to this
_GRACE = 30.0  # seconds that a worker which has answered gets to end by itself
_HUNG_AFTER = 2  # rounds in a row that a running worker may miss before it is taken for frozen
_NO_ANSWER = "its worker ended well, but without an answer; does its silo.yaml carry this silo's name?"

Say = Callable[[str], None]


class Supervisor:
    """Keeps one silo's training going until the last round is committed.

    A worker that ends with a retryable code, or is killed, is started again, `dispatch.retries` times a round; then the silo
    is left out of that round and comes back in the next. After a permanent code it is left out of the rest of the run.
    """

    def __init__(self, silo: SiloEntry, federation: Federation, run: Run, dispatcher: Dispatcher, say: Say) -> None:
        self._silo = silo
        self._federation = federation
        self._rounds = federation.algorithm.rounds
        self._run = run
        self._dispatcher = dispatcher
        self._say = say
        self._work: Work | None = None
        self._work_round: int | None = None
        self._waits = Waits(say)
        self._answered = 0
        self._seen = -1
        self._missed = 0
        self._ends_by: float | None = None
        self._stopping = False
        self._failures = 0
        self._failed_round = -1
        self._not_before = 0.0
        self.finished = False
        self.failure: str | None = None

    def tick(self, latest: Commit | None) -> None:
        """One look, knowing the last commit: start what should run, judge what ended, stop what nobody needs. Cheap."""
        if self.finished:
            return
        if self._work is not None:
            self._look(self._work, latest)
        if self._work is None and latest is not None and latest.round >= self._rounds:
            self.finished = True
        elif self._work is None and latest is not None and time.monotonic() >= self._not_before:
            self._start_next(latest.round + 1)

    def stop(self) -> None:
        """End the worker, if one runs."""
        if self._work is not None and self._work.outcome() is None:
            self._work.stop()

    def _start_next(self, number: int) -> None:
        if number <= self._answered:
            return  # the next round starts with the next commit
        if self._run.answered(self._silo.name, number):
            self._answered = number
            return
        self._work_round = number if self._silo.dispatch.residency == "round" else None
        self._ends_by, self._stopping, self._missed = None, False, 0
        self._work = self._dispatcher.start(request_for(self._federation, self._run.run_id, self._silo, "train", self._work_round))

    def _look(self, work: Work, latest: Commit | None) -> None:
        outcome = work.outcome()
        if outcome is not None:
            self._work = None
            self._waits.ended(self._silo.name, outcome)
            if not self._stopping:
                self._judge(outcome, latest.round + 1 if latest is not None else 0)
            return
        waiting = work.waiting()
        self._waits.report(self._silo.name, waiting)
        if latest is not None:
            self._end_what_is_over(work, latest)
            self._end_what_hangs(work, latest, waiting)

    def _end_what_is_over(self, work: Work, latest: Commit) -> None:
        """A worker whose (last) round is committed ends by itself if it answered; one that is late is of no use any more."""
        last = self._rounds if self._work_round is None else self._work_round
        if latest.round < last or self._stopping:
            return
        if self._ends_by is None:
            self._ends_by = time.monotonic() + (_GRACE if self._silo.name in latest.participants else 0.0)
        if time.monotonic() >= self._ends_by:
            self._stopping = True
            work.stop()
            self.finished = latest.round >= self._rounds

    def _end_what_hangs(self, work: Work, latest: Commit, waiting: Waiting | None) -> None:
        """A worker for all rounds that runs, and yet misses round after round, would hold every round up to its deadline."""
        if latest.round == self._seen or self._stopping:
            return
        self._seen = latest.round
        absent = self._silo.name in latest.absent and waiting is None
        self._missed = self._missed + 1 if absent else 0
        if self._missed >= _HUNG_AFTER and self._work_round is None:
            self._stopping = True
            work.stop()
            self._say(f"silo {self._silo.name}: missed {self._missed} rounds though it runs; taken for frozen and started again")

    def _judge(self, outcome: Outcome, number: int) -> None:
        if outcome.done and not self._without_answer(number):
            self._answered = max(self._answered, self._work_round or 0)
            return
        if outcome.exit_code == RunAborted.exit_code:
            self.finished = True
            return
        if outcome.late or outcome.disrupted:  # in a run's last Job the hospital's limit is shorter than the run: start anew
            self._not_before = time.monotonic() + 1.0
            self._say(f"silo {self._silo.name}: {outcome}; started again")
            return
        outcome = replace(outcome, reason=_NO_ANSWER) if outcome.done else outcome
        self._failures = self._failures + 1 if number == self._failed_round else 1
        self._failed_round = number
        if outcome.permanent:
            self._give_up(number, outcome)
        elif self._failures > self._silo.dispatch.retries:
            self._leave_out(number, outcome)
        else:
            pause = min(_LONGEST_PAUSE, 0.5 * 2 ** (self._failures - 1))
            self._not_before = time.monotonic() + pause
            self._say(f"silo {self._silo.name}: {outcome}; restart {self._failures} of {self._silo.dispatch.retries} in {pause:g} s")

    def _without_answer(self, number: int) -> bool:
        """Whether a worker that says it is done owes the open round its answer: it would be started again for ever."""
        owed = self._work_round in (None, number) and 1 <= number <= self._rounds
        return owed and not self._run.answered(self._silo.name, number)

    def _leave_out(self, number: int, outcome: Outcome) -> None:
        """Nobody waits for the silo in round `number`; it comes back in the next."""
        self._answered = number
        self._say(f"silo {self._silo.name}: left out of round {number}: {outcome}")
        self._run.mark_absent(self._silo.name, number, outcome.reason)

    def _give_up(self, number: int, outcome: Outcome) -> None:
        self.finished = True
        self.failure = outcome.reason
        self._say(f"silo {self._silo.name}: left out from round {number} on: {outcome}")
        for missed in range(number, self._rounds + 1):
            self._run.mark_absent(self._silo.name, missed, outcome.reason)


class Waits:
    """Says why silos wait, each reason once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._said: dict[str, str] = {}

    def report(self, silo: str, waiting: Waiting | None) -> None:
        """What the silo's work waits for now; None: it runs."""
        if waiting is None:
            self.over(silo)
        elif self._said.get(silo) != waiting.reason:
            self._said[silo] = waiting.reason
            self._say(f"silo {silo}: waiting: {waiting}")

    def ended(self, silo: str, outcome: Outcome) -> None:
        """The silo's work has ended. Of work that was given up while it waited, whoever gives it up says so."""
        if outcome.done:
            self.over(silo)
        else:
            self._said.pop(silo, None)

    def over(self, silo: str) -> None:
        """The silo's work runs or is done."""
        if self._said.pop(silo, None) is not None:
            self._say(f"silo {silo}: waits no longer ({datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ})")


class CommitWatch:
    """The last commit, asked of the store seldom enough for a bucket, whoever asks here and however often."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._poller = Poller(run.store)
        self._next = 0.0
        self._latest: Commit | None = None
        self._since = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since a new commit was seen, or since the beginning."""
        return time.monotonic() - self._since

    def latest(self) -> Commit | None:
        """None before commit 0."""
        if time.monotonic() >= self._next:
            self._run.raise_if_aborted()
            found = self._run.latest_commit()
            if found != self._latest:
                self._latest, self._since = found, time.monotonic()
                self._poller.reset()
            self._next = time.monotonic() + self._poller.interval
        return self._latest


class SupervisorThread:
    """Ticks supervisors beside an aggregation in the main thread."""

    def __init__(self, supervisors: Sequence[Supervisor], federation: Federation, run: Run, say: Say) -> None:
        self._supervisors = supervisors
        self._run = run
        self._say = say
        self._tick = tick_of(federation)
        self._lease = Lease(run.store, run.run_id, federation.protocol.lease)
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="supervisors", daemon=True)

    def __enter__(self) -> SupervisorThread:
        self._lease.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Let workers that have answered the last round end by themselves; stop at once if the run failed."""
        if kind is not None:
            self._stop.set()
        self._thread.join()
        for supervisor in self._supervisors:
            supervisor.stop()
        self._lease.__exit__(None, None, None)

    def _loop(self) -> None:
        commits = CommitWatch(self._run)
        try:
            while not self._stop.wait(self._tick) and not all(s.finished for s in self._supervisors):
                tick_all(self._supervisors, commits, self._say)
        except RunAborted:
            return  # the main thread learns it from the store too
        except Exception as e:  # the main thread waits in the store: the abort reaches it there, and it raises this error
            self.error = e
            self._run.abort(f"the silos' supervisor failed: {public_half(e)}")


def tick_all(supervisors: Iterable[Supervisor], commits: CommitWatch, say: Say) -> None:
    """One look at every silo; a store that is away for a moment ends nothing.

    Raises:
        RunAborted: the run was ended for everyone.
    """
    try:
        latest = commits.latest()
        for supervisor in supervisors:
            supervisor.tick(latest)
    except RetryableError as e:
        say(f"supervisor: {e}; trying again")
        time.sleep(1.0)


def watch_one(supervisor: Supervisor, silo: str, federation: Federation, run: Run, say: Say) -> None:
    """Tick one supervisor to its end (silo_training).

    Raises:
        HubSilent: no round was committed for twice a round's deadline and a lease: whoever aggregates is gone.
        RunAborted: the run was ended for everyone.
    """
    commits = CommitWatch(run)
    patience = 2 * federation.protocol.round_deadline + federation.protocol.lease  # an aggregation that starts anew waits anew
    with Lease(run.store, run.run_id, federation.protocol.lease, silo=silo):
        while not supervisor.finished:
            tick_all([supervisor], commits, say)
            if commits.silent_s > patience:
                raise HubSilent(
                    f"no round was committed for {commits.silent_s:.0f} s, though each closes within {federation.protocol.round_deadline:g} s"
                    " (protocol.round_deadline); look at node aggregation, then start this one again")
            time.sleep(tick_of(federation))
    run.raise_if_aborted()


def run_everywhere(
    action: Action, federation: Federation, run: Run, dispatcher: Dispatcher, say: Say, done: Callable[[str], bool],
    deadline_s: float = math.inf,
) -> dict[str, Outcome]:
    """Start `action` in every silo at once (except those where `done` says so) and wait; silo -> outcome for those that failed.

    Who has not ended `deadline_s` seconds after the start is stopped and has failed.
    """
    failed: dict[str, Outcome] = {}
    requests = {entry.name: request_for(federation, run.run_id, entry, action) for entry in federation.silos}
    failures = dict.fromkeys(requests, 0)
    waits = Waits(say)

    def again(silo: str, outcome: Outcome) -> bool:
        if outcome.disrupted and not outcome.late:
            say(f"silo {silo}: {outcome}; started again")
            return True
        failures[silo] += 1
        retries = requests[silo].entry.dispatch.retries
        if outcome.late or outcome.permanent or failures[silo] > retries:
            failed[silo] = outcome
            if outcome.where:
                say(f"silo {silo}: failed; {outcome.where}")
            return False
        say(f"silo {silo}: {outcome}; restart {failures[silo]} of {retries}")
        return True

    with Lease(run.store, run.run_id, federation.protocol.lease):
        working = {silo: dispatcher.start(request) for silo, request in requests.items() if not done(silo)}
        until = time.monotonic() + deadline_s
        while working:
            over = time.monotonic() >= until
            for silo, work in list(working.items()):
                outcome = work.outcome()
                if outcome is None:
                    if over:
                        work.stop()
                        failed[silo] = unanswered(f"no answer within {deadline_s:g} s (protocol.round_deadline)")
                        del working[silo]
                    else:
                        waits.report(silo, work.waiting())
                    continue
                waits.ended(silo, outcome)
                del working[silo]
                if not outcome.done and again(silo, outcome):
                    working[silo] = dispatcher.start(requests[silo])
            time.sleep(tick_of(federation))
    return failed


def tick_of(federation: Federation) -> float:
    """Seconds between two looks at this federation's workers."""
    return _TICK if federation.silos_here else _REMOTE_TICK


def unanswered(reason: str) -> Outcome:
    """Of work that ended without what it was for."""
    return Outcome(exit_code=JobFailed.exit_code, reason=reason)


def require_none_failed(failed: Mapping[str, Outcome], what: str) -> None:
    """Raise one error that names every silo in `failed`, those with the same reason together.

    Raises:
        RetryableError: all of them failed with the same one, such as a full disk.
        JobFailed: `failed` is not empty.
    """
    by_reason: dict[str, list[str]] = {}
    for silo, outcome in failed.items():
        by_reason.setdefault(outcome.reason.removeprefix(f"silo {silo}: "), []).append(silo)
    if by_reason:
        codes = {outcome.exit_code for outcome in failed.values()}
        kind = next((kind for kind in RetryableError.__subclasses__() if codes == {kind.exit_code}), JobFailed)
        raise kind("\n".join(
            f"silo{'s' if len(silos) > 1 else ''} {', '.join(silos)}: {what} failed: {reason}" for reason, silos in by_reason.items()))
