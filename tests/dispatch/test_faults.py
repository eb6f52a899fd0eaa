"""Real workers that are frozen or given up: what the run makes of it, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.config.task import TaskConfig
from tests.tiny import DELETE, SILOS, Processes, TinyFederation, ended, last_json, succeeded, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
Make = Callable[..., TinyFederation]
PLAIN: dict[str, Any] = {"algorithm__method": "fedavg", "public_set": DELETE}


def checked(tiny: TinyFederation, processes: Processes) -> tuple[str | Path, ...]:
    """Check `tiny` as run r; the arguments that the other components take."""
    succeeded(processes.component("check", "--federation", tiny.path, "--run-id", "r"), 900)
    return "--store", tiny.store, "--run", "r"


def worker_of(silo: str, processes: Processes) -> int | None:
    """pid of the silo's worker: the process that prints into its log."""
    for pid in processes.alive():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/1").endswith(f"/{silo}.log"):
                return pid
    return None


def test_a_silo_that_fails_for_good_is_left_out_with_its_own_words_and_the_run_goes_on(make_tiny: Make, processes: Processes) -> None:
    tiny = make_tiny(**PLAIN, protocol__min_silos=2, protocol__round_deadline=900.0)
    where = checked(tiny, processes)
    tiny.write_silo("brno", data__center=77)
    (tiny.folder / "state" / "brno" / "cache").rename(tiny.folder / "gone")
    output = succeeded(processes.component("federation", *where), 900)
    assert re.search(r"silo brno: left out from round 1 on: data that cannot be used; .*errors\.log", output)
    for number in (1, 2):
        commit = tiny.run("r").commit(number)
        assert commit is not None
        assert commit.participants == ("aachen", "coimbra")
        assert "data that cannot be used" in commit.absent["brno"] and "77" not in commit.absent["brno"]
    output = succeeded(processes.component("evaluation", *where, "--report-file", tiny.folder / "report.html"), 900)
    assert re.search(r"silo brno: left out of the evaluation: data that cannot be used", output)
    scores = last_json(output)
    others = {f"{whose}_silos_mean_{metric.name}" for whose in ("small", "all") for metric in TaskConfig(name="melanoma").scored_by[1:]}
    assert scores.keys() == {"aachen", "coimbra", "small_silos_mean", "all_silos_mean", "worst_silo", "silos_left_out", *others}
    assert scores["silos_left_out"] == 1
    assert "brno" in (tiny.folder / "report.html").read_text(encoding="utf-8")


def test_evaluation_needs_the_quorum_too(make_tiny: Make, processes: Processes) -> None:
    tiny = make_tiny(**PLAIN, algorithm__rounds=1, protocol__round_deadline=900.0)
    where = checked(tiny, processes)
    succeeded(processes.component("federation", *where), 900)
    tiny.write_silo("brno", data__center=77)
    (tiny.folder / "state" / "brno" / "cache").rename(tiny.folder / "gone")
    code, output = ended(processes.component("evaluation", *where), 900)
    assert code == 19
    assert re.search(r"silo brno: evaluation failed: data that cannot be used; all of it is in errors\.log", output)


def test_a_silo_whose_aggregation_is_gone_waits_for_it_only_so_long(make_tiny: Make, processes: Processes) -> None:
    tiny = make_tiny(**PLAIN, protocol__round_deadline=10.0, protocol__lease=5.0)
    where = checked(tiny, processes)
    code, output = ended(processes.component("silo_training", *where, "--silo", "aachen"), 300)
    assert code == 34
    assert re.search(r"no round was committed for \d+ s, though each closes within 10 s .* look at node aggregation", output)


def test_a_lost_quorum_ends_every_component_with_one_clear_message(make_tiny: Make, processes: Processes) -> None:
    tiny = make_tiny(**PLAIN, protocol__round_deadline=900.0)
    where = checked(tiny, processes)
    tiny.write_silo("brno", data__center=77)
    silos = {silo: processes.component("silo_training", *where, "--silo", silo) for silo in SILOS}
    code, output = ended(processes.component("aggregation", *where), 900)
    assert code == 17
    [error] = [line for line in output.splitlines() if "error: " in line]
    assert "round 1: " in error
    assert re.search(r"at least 3 \(protocol.min_silos\) expected; brno: data that cannot be used; all of it is in errors\.log", error)
    ends = {silo: ended(process, 900) for silo, process in silos.items()}
    assert ends["aachen"][0] == ends["coimbra"][0] == 16, ends
    assert "at least 3 (protocol.min_silos) expected" in ends["aachen"][1]
    assert ends["brno"][0] in (0, 16), ends["brno"][1]


@pytest.mark.long
def test_a_frozen_silo_is_left_out_at_the_deadline_and_comes_back(make_tiny: Make, processes: Processes) -> None:
    tiny = make_tiny(**PLAIN, algorithm__rounds=100_000, protocol__min_silos=1, protocol__round_deadline=20.0)
    where = checked(tiny, processes)
    run = tiny.run("r")
    federation = processes.component("federation", *where)

    def took_part(after: int) -> int | None:
        latest = run.latest_commit()
        return latest.round if latest is not None and latest.round > after and "brno" in latest.participants else None

    first = wait_until(lambda: took_part(0), "a round with brno", 300)
    frozen = worker_of("brno", processes)
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)

    def left_out() -> int | None:
        latest = run.latest_commit()
        return latest.round if latest is not None and "brno" in latest.absent else None

    missed = wait_until(left_out, "a round without brno", 300)
    assert missed > first
    os.kill(frozen, signal.SIGCONT)
    wait_until(lambda: took_part(missed), "brno's return", 300)
    federation.send_signal(signal.SIGTERM)
    code, output = ended(federation, 120)
    assert code == 143
    assert "Traceback" not in output
