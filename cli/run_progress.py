"""What people see while `fedhelp run` works: a live table on a terminal, a line a phase and round elsewhere. Called by run.py.

Everything shown is read: commits, updates and evaluations from the store, steps from the workers' logs, waits from the pipeline's log. So a run is
shown alike whoever does its work, and nothing that trains knows that somebody looks.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from fedhelp_cli.live_table import LiveTable, RunNow, SiloNow
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.facts import Kinds, SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.registry.methods import VALIDATION_SCORE
from fedhelp_core.store.open import open_store

console = Console(stderr=True)
_LOOK = 0.25  # seconds between looks at a store's folder; a look at a bucket is a request, and costs money
_LOOK_AT_BUCKET = 2.0
_DRAWN = 4  # times a second: often enough for a spinner, seldom enough for a slow connection
_TAIL = 4096  # bytes of a log's end, in which a worker's newest event is looked for
_LAST_ROUNDS = 5  # whose time says how long the next ones take
_CHECK, _PREFETCH, _ROUNDS, _EVALUATION = (
    "check: every silo looks at its data", "soft labels from the teacher", "federation: rounds", "evaluation and promotion")


def watched() -> bool:
    """Whether somebody sees a terminal that can redraw; else lines are printed, for a log."""
    return console.is_terminal and not console.is_dumb_terminal


class RunProgress:
    """Shows the run between `__enter__` and `__exit__`. `log`: where the pipeline's own lines go; `workers`: the folder of the workers' logs."""

    def __init__(self, federation: Federation, run_id: str, *, log: Path, workers: Path) -> None:
        self._federation = federation
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, args=[run_id], daemon=True, name="progress")
        self._said: set[str] = set()
        self._watch = Watch(federation, log=log, workers=workers)
        self._live = Live(LiveTable(self._watch.now), console=console, refresh_per_second=_DRAWN) if watched() else None

    def __enter__(self) -> RunProgress:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()

    def _loop(self, run_id: str) -> None:
        store = open_store(self._federation.store.url, endpoint_url=self._federation.store.endpoint_url)
        run, pause, stopped = Run(store, run_id), 0.0, False
        while not stopped:
            stopped = self._stop.wait(pause)  # and a last look after that, for what has come since
            pause = _LOOK if store.is_local else _LOOK_AT_BUCKET
            with contextlib.suppress(FedHelpError):
                self._watch.look(run)
                if self._live is None:
                    self._say_what_is_new()

    def _say_what_is_new(self) -> None:
        phase, commit, rounds = self._watch.phase, self._watch.commit, self._federation.algorithm.rounds
        if commit is None or commit.round < rounds:
            self._say_once(phase)
        if commit is not None and commit.round:
            from fedhelp_components.aggregation.__main__ import mean_loss

            self._say_once(f"round {commit.round} of {rounds}: {len(commit.participants)} silos, mean loss {mean_loss(commit):.3f}")
        self._say_once(phase)  # evaluation: after the last round

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            console.print(f"[{time.monotonic() - self._started:5.1f} s] {line}", highlight=False, markup=False)


class Watch:
    """What is known of a run so far: `look` looks, on one thread; `now` says, on any."""

    def __init__(self, federation: Federation, *, log: Path, workers: Path) -> None:
        self._federation = federation
        self._log = LogLines(log, federation.silo_names)
        self._workers = workers
        self._here = {silo.name for silo in federation.silos_here}
        self._started = time.monotonic()
        self._ours = False
        self._losses: dict[str, list[float]] = {silo: [] for silo in federation.silo_names}
        self._counts: dict[str, int] = {}
        self._scores: dict[str, float] = {}
        self._validation: dict[str, float] = {}
        self._kinds: Kinds | None = None
        self._pace = Pace(federation.algorithm.rounds)
        self._silos = tuple(SiloNow(name=silo, state="checks") for silo in federation.silo_names)
        self.phase = _CHECK
        self.commit: Commit | None = None

    def now(self) -> RunNow:
        """As of the last look."""
        return RunNow(
            phase=self.phase, done=self.commit.round if self.commit is not None else 0, rounds=self._federation.algorithm.rounds,
            seconds=time.monotonic() - self._started, silos=self._silos, score=self._federation.task.headline.title,
            seconds_left=self._pace.seconds_left(time.monotonic()) if self.phase == _ROUNDS else None)

    def look(self, run: Run) -> None:
        """One look at the store and the logs.

        Raises:
            FedHelpError: the store does not answer; the next look may see more.
        """
        self._log.read()
        if self._is_ours(run):
            before = (self.phase, self.commit)
            self._take_commits(run)
            self.phase = self._phase_of(run)
            if (self.phase, self.commit) != before:
                self._log.forget()
            if self.phase == _ROUNDS:
                self._pace.seen(self.commit.round if self.commit is not None else 0, time.monotonic())
        self._silos = self._silos_in(run)

    def _is_ours(self, run: Run) -> bool:
        """Whether the run was frozen with our config. Before that, what the store holds of it may be another's."""
        if not self._ours:
            with contextlib.suppress(NotFound):
                self._ours = run.federation_yaml() == self._federation.to_yaml()
        return self._ours

    def _take_commits(self, run: Run) -> None:
        latest = run.latest_commit()
        if latest is None:
            return
        known = self.commit.round if self.commit is not None else 0
        for number in range(known + 1, latest.round + 1):
            commit = latest if number == latest.round else run.commit(number)
            for silo, metrics in commit.metrics.items() if commit is not None else ():
                if "loss" in metrics and silo in self._losses:
                    self._losses[silo].append(metrics["loss"])
                if VALIDATION_SCORE in metrics and silo in self._losses:
                    self._validation[silo] = metrics[VALIDATION_SCORE]
        self.commit = latest

    def _phase_of(self, run: Run) -> str:
        done = self.commit.round if self.commit is not None else 0
        if done == self._federation.algorithm.rounds:
            return _EVALUATION
        if done or run.has_fact(SoftLabels):
            return _ROUNDS
        if not run.has_fact(Kinds):
            return _CHECK
        return _PREFETCH if self._federation.uses_public_set else _ROUNDS

    def _silos_in(self, run: Run) -> tuple[SiloNow, ...]:
        names = self._federation.silo_names
        if self._ours and self._kinds is None and run.has_fact(Kinds):
            self._kinds = run.fact(Kinds)
        if self._ours and len(self._counts) < len(names):
            for silo in names:
                if silo not in self._counts and (report := run.silo_report(silo)) is not None:
                    self._counts[silo] = report.samples.training
        if self.phase == _ROUNDS:
            return self._in_round(run, self.commit.round + 1 if self.commit is not None else 1)
        if self.phase == _EVALUATION:
            self._take_scores(run)
            return tuple(self._silo(silo, "scored" if silo in self._scores else "scores") for silo in names)
        if self.phase == _PREFETCH:
            return tuple(self._silo(silo, "ready") for silo in names)
        return tuple(self._silo(silo, "checked" if silo in self._counts else "checks") for silo in names)

    def _in_round(self, run: Run, number: int) -> tuple[SiloNow, ...]:
        names, keys = self._federation.silo_names, run.keys
        sent = run.store.present([keys.update(silo, number) for silo in names], prefix=keys.updates(number))
        marked = run.store.present([keys.absence(silo, number) for silo in names], prefix=keys.absences(number))
        found, shares = [], []
        for silo in names:
            if keys.update(silo, number) in sent:
                found.append(self._silo(silo, "sent"))
            elif keys.absence(silo, number) in marked:
                found.append(self._silo(silo, "absent", run.absence(silo, number) or ""))
            else:
                share = self._share_done(silo, number)
                found.append(self._silo(silo, "trains" if share is not None else "waits", "" if not share else f"{share:.0%}"))
                shares.append(share or 0.0)
        self._pace.share(min(shares, default=1.0))
        return tuple(found)

    def _silo(self, name: str, state: str, said: str = "") -> SiloNow:
        """`state`, unless the hub has said that the silo waits; `said`, or what the hub said last of it."""
        waits, heard = self._log.of(name)
        if waits and state in ("trains", "checks", "scores"):
            state = "waits"
        return SiloNow(
            name=name, state=state, kind=self._kinds.root.get(name, "") if self._kinds is not None else "", images=self._counts.get(name),
            said=said or heard or self._left_out(name), losses=tuple(self._losses[name]), score=self._scores.get(name, self._validation.get(name)))

    def _left_out(self, silo: str) -> str:
        """Why it was not in the last round's average."""
        if self.commit is None or silo not in {**self.commit.absent, **self.commit.refused}:
            return ""
        reason = self.commit.refused.get(silo)
        return f"round {self.commit.round}: " + (f"refused: {reason}" if reason is not None else self.commit.absent[silo])

    def _share_done(self, silo: str, number: int) -> float | None:
        """How much of its local steps a worker of this machine has done; 0 where it does not say, None before it begins."""
        if silo not in self._here:
            return 0.0
        event = newest_event(self._workers / f"{silo}.log")
        if event.get("round") != number:
            return None
        try:
            return min(1.0, event["step"] / event["steps"]) if event.get("event") == "progress" else 0.0
        except (KeyError, TypeError, ZeroDivisionError):
            return 0.0

    def _take_scores(self, run: Run) -> None:
        name = self._federation.task.headline.name
        for silo in self._federation.silo_names:
            if silo not in self._scores:
                with contextlib.suppress(FedHelpError):  # evaluation says what is wrong with it
                    if (evaluation := run.evaluation(silo)) is not None:
                        self._scores[silo] = evaluation.deployed_model.scores.get(name, float("nan"))


class Pace:
    """How long rounds take, and so how long the rest will. Pure: times come from the caller."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._at: list[tuple[int, float]] = []
        self._share = 0.0

    def seen(self, done: int, now: float) -> None:
        """`done` rounds are closed at the time `now`."""
        if not self._at or self._at[-1][0] != done:
            self._at.append((done, now))
            self._share = 0.0

    def share(self, done: float) -> None:
        """The slowest silo has done this much of the open round."""
        self._share = done

    def seconds_left(self, now: float) -> float | None:
        """Of all rounds that are open; None before anything can be said."""
        if not self._at:
            return None
        done, since = self._at[-1]
        spans = [(later - earlier) / (b - a) for (a, earlier), (b, later) in zip(self._at, self._at[1:], strict=False)][-_LAST_ROUNDS:]
        if spans:
            one = statistics.median(spans)
        elif self._share > 0.1:  # less would promise anything
            one = (now - since) / self._share
        else:
            return None
        return max(0.0, one * (self._rounds - done) - (now - since))


class LogLines:
    """What the hub says of silos in its own log, from now on: why they wait, and what became of their work."""

    def __init__(self, path: Path, silos: tuple[str, ...]) -> None:
        self._path, self._silos = path, set(silos)
        self._at = path.stat().st_size if path.exists() else 0
        self._heard: dict[str, str] = {}

    def read(self) -> None:
        """Take in what has been written since."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(newline)
            for line in whole.decode(errors="replace").splitlines():
                name, _, said = line.removeprefix("silo ").partition(": ")
                if line.startswith("silo ") and name in self._silos:
                    self._heard[name] = said

    def of(self, silo: str) -> tuple[bool, str]:
        """Whether it waits for its cluster, and why, or what was said of it last."""
        heard = self._heard.get(silo, "")
        if heard.startswith("waiting: "):
            return True, heard.removeprefix("waiting: ")
        return False, "" if heard.startswith("waits no longer") else heard

    def forget(self) -> None:
        """What was said of a phase or a round that is over; a silo may still wait."""
        self._heard = {silo: said for silo, said in self._heard.items() if said.startswith("waiting: ")}


def newest_event(log: Path) -> dict[str, Any]:
    """The last whole JSON line at the end of a worker's log; empty where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    return event
    return {}
