"""`kill -9` of whatever runs, at moments drawn from a fixed seed; then the same command again. Nothing is lost, nothing is left behind.

Victims are known by their command lines, so the commands are not forked from warm.py's server.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import Processes, TinyFederation, succeeded
from tests.tiny_tasks import write_task

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.timeout(2400)]  # seconds; more than ten minutes on two idle cores

MOMENTS = 20
VICTIMS = ("forkserver", "resource_tracker", "fedhelp run", "any")


def commits_of(tiny: TinyFederation, run_id: str) -> dict[str, tuple[int, bytes]]:
    """Name -> (when it was written, its bytes) of every commit of the run."""
    folder = tiny.store / "runs" / run_id / "rounds"
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*/commit.json")}


def victim_among(alive: dict[int, str], kind: str, moments: random.Random) -> int | None:
    """A process of `kind`; forked workers have the fork server's command line, so 'forkserver' draws among it and them."""
    pids = sorted(pid for pid, command in alive.items() if kind == "any" or kind in command)
    return moments.choice(pids) if pids else None


def killed_once(processes: Processes, command: subprocess.Popen[str], after: float, kind: str, moments: random.Random) -> bool:
    """Let `command` run for `after` seconds, kill one of its processes, and see everything else end; whether it was killed in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(timeout=after)
    if command.poll() is not None:
        return False
    victim = victim_among(processes.alive(), kind, moments)
    if victim is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    command.communicate(timeout=600)
    processes.wait_until_gone()
    return victim is not None


def test_twenty_kills_of_any_process_end_with_the_bits_of_an_undisturbed_run(
    make_tiny: Callable[..., TinyFederation], processes: Processes,
) -> None:
    changes = {"algorithm__rounds": 6, "silos__1__dispatch__residency": "round"}
    undisturbed = make_tiny(**changes)
    started = time.monotonic()
    succeeded(processes.fedhelp("run", undisturbed.path, "--run-id", "calm", fork=False))
    length = time.monotonic() - started
    expected = undisturbed.final_sha256("calm")

    moments = random.Random(20)
    kills = runs = 0
    while kills < MOMENTS:
        tiny, runs = make_tiny(**changes), runs + 1
        seen: dict[str, tuple[int, bytes]] = {}
        while kills < MOMENTS:
            command = processes.fedhelp("run", tiny.path, "--run-id", "stormy", fork=False)
            kills += killed_once(processes, command, moments.uniform(0.1, 0.95) * length, VICTIMS[kills % len(VICTIMS)], moments)
            now = commits_of(tiny, "stormy")
            assert {name: now[name] for name in seen} == seen, "a committed round was written again"
            seen = now
            if command.returncode == 0:
                break
        succeeded(processes.fedhelp("run", tiny.path, "--run-id", "stormy"))
        assert tiny.final_sha256("stormy") == expected
    assert runs >= 1


def test_kills_of_a_run_of_several_findings_end_with_its_bits_too(processes: Processes, tmp_path: Path) -> None:
    calm, stormy = write_task("chest-findings", tmp_path / "calm"), write_task("chest-findings", tmp_path / "stormy")
    started = time.monotonic()
    succeeded(processes.fedhelp("run", calm.path, "--run-id", "run", fork=False))
    length = time.monotonic() - started
    moments = random.Random(3)
    for kind in VICTIMS[:3]:
        command = processes.fedhelp("run", stormy.path, "--run-id", "run", fork=False)
        killed_once(processes, command, moments.uniform(0.3, 0.8) * length, kind, moments)
    succeeded(processes.fedhelp("run", stormy.path, "--run-id", "run"))
    assert stormy.final_sha256("run") == calm.final_sha256("run")
