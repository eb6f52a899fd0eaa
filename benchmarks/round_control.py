"""Control time of a round: from one commit to the next with no training between.

    python -m benchmarks.round_control [--repeat 3]

Four silos, each a warm process of its own, and the hub meet in a folder store, as in `fedhelp run`: a silo waits for the
commit, reads and checks the global model, and sends it back unchanged; the hub checks four updates, averages, commits.
Each repeat is a run of 55 rounds in a new store, of which the first five are warm-up.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.figures import Figure, run_alone, spread
from benchmarks.payload import ARCHITECTURE, payload
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.store.local import LocalStore

SILOS = ("silo-a", "silo-b", "silo-c", "silo-d")
WARM_UP, COUNTED = 5, 50
MAX_BYTES = 2**30
TERMS = Terms(max_bytes=MAX_BYTES, max_norm_ratio=3.0, max_statistics_ratio=20.0, min_direction=-0.3)  # as federation.yaml has them
TARGET_MS = 20.0


@dataclass(frozen=True)
class Answer:
    """When a silo did what in one round; time.monotonic(), one clock for all processes of a machine."""

    woke: float
    read: float
    sent: float


@dataclass(frozen=True)
class Measured:
    """One run: commits[r] is when the hub had committed round r, taken[r-1] when it had all of round r's updates."""

    commits: list[float]
    taken: list[float]
    answers: list[list[Answer]]

    def rounds_ms(self) -> list[float]:
        """Commit to commit, without the warm-up."""
        return [1000 * (self.commits[r] - self.commits[r - 1]) for r in range(WARM_UP + 1, WARM_UP + COUNTED + 1)]

    def phases_ms(self) -> dict[str, float]:
        """Where a round's time goes, medians: what the hub waits for is the slowest silo."""
        rounds = range(WARM_UP, WARM_UP + COUNTED)
        last = {r: max((silo[r] for silo in self.answers), key=lambda answer: answer.sent) for r in rounds}
        return {
            "silo sees the commit": _median_ms(last[r].woke - self.commits[r] for r in rounds),
            "reads the model": _median_ms(last[r].read - last[r].woke for r in rounds),
            "sends": _median_ms(last[r].sent - last[r].read for r in rounds),
            "hub has checked the last": _median_ms(self.taken[r] - last[r].sent for r in rounds),
            "averages and commits": _median_ms(self.commits[r + 1] - self.taken[r] for r in rounds),
        }


def figures(repeat: int, *, durable: bool = True) -> list[Figure]:
    """The median over all counted rounds of `repeat` runs."""
    runs = [measure(durable=durable) for _ in range(repeat)]
    rounds = [ms for run in runs for ms in run.rounds_ms()]
    phases = {name: statistics.median(run.phases_ms()[name] for run in runs) for name in runs[0].phases_ms()}
    return [
        Figure(
            name="control time of a round", value=statistics.median(rounds), unit="ms", target=TARGET_MS,
            yardstick="--peers measures NVFLARE and Flower on the same payload",
            detail=f"quartiles {spread(rounds)} ms, medians by run {', '.join(f'{statistics.median(run.rounds_ms()):.1f}' for run in runs)}"),
        *(Figure(name=f"of it: {name}", value=ms, unit="ms", detail="the last silo to answer" if i < 3 else "") for i, (name, ms) in enumerate(
            phases.items())),
    ]


def measure(*, durable: bool = True) -> Measured:
    """One run of WARM_UP + COUNTED rounds in a new store."""
    rounds = WARM_UP + COUNTED
    with tempfile.TemporaryDirectory(prefix="fedhelp-bench-") as folder, _silos(Path(folder), rounds, durable) as silos:
        run = Run(LocalStore(Path(folder), durable=durable), "bench")
        run.initialise(payload(), ARCHITECTURE)
        commits, taken = [time.monotonic()], []
        for number in range(1, rounds + 1):
            accepted: list[float] = []
            close_round(
                run, number, dict.fromkeys(SILOS, 1), min_silos=len(SILOS), deadline_s=60, terms=TERMS,
                on_event=lambda event, seen=accepted: seen.append(time.monotonic()) if event["event"] == "update_accepted" else None)  # type: ignore[misc]
            commits.append(time.monotonic())
            taken.append(accepted[-1])
        return Measured(commits, taken, [connection.recv() for connection in silos])


@contextmanager
def _silos(folder: Path, rounds: int, durable: bool) -> Iterator[Sequence[Connection]]:
    """Silo processes that have imported everything and wait for commit 0."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in SILOS]
    processes = [context.Process(target=_silo, args=(silo, folder, rounds, durable, far), daemon=True) for silo, (_, far) in zip(
        SILOS, pairs, strict=True)]
    for process in processes:
        process.start()
    try:
        for near, _ in pairs:
            near.recv()  # it is warm
        yield [near for near, _ in pairs]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _silo(name: str, folder: Path, rounds: int, durable: bool, connection: Connection) -> None:
    """What fedhelp_core.silo.work.Silo.train does, but for the training."""
    run = Run(LocalStore(folder, durable=durable), "bench")
    answers: list[Answer] = []
    connection.send("warm")
    for number in range(1, rounds + 1):
        commit = run.wait_for_commit(number - 1)
        woke = time.monotonic()
        weights = run.global_weights(commit, max_bytes=MAX_BYTES)
        read = time.monotonic()
        run.submit_update(name, number, weights, trained_from=commit.global_sha256, architecture=ARCHITECTURE, samples=1, loss=0.0, metrics={})
        answers.append(Answer(woke, read, time.monotonic()))
    connection.send(answers)


def _median_ms(seconds: Iterator[float]) -> float:
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    run_alone(figures, __doc__, repeat=3)
