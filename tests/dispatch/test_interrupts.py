"""Ctrl-C, which a terminal sends to every process of the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_PROGRAM = """
import time
from fedhelp_dispatch.process import start_ahead
start_ahead()
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def children_of(process: int) -> list[str]:
    """Their numbers, as Linux knows them."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def maps_of(process: str) -> str:
    """What is in its memory; nothing of one that has ended."""
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow  # a process of its own that imports PyTorch
def test_the_fork_server_does_not_hear_it_while_it_imports() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "started\n"
    while not any("libtorch" in maps_of(child) for child in children_of(command.pid)):
        assert command.poll() is None
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGINT)
    said, errors = command.communicate(timeout=60)
    assert (said, errors) == ("stopped\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_being_started_is_ended_too(number: signal.Signals, tmp_path: Path) -> None:
    """A signal that comes while a worker is forked is heard once the dispatcher knows it, or nobody would end it."""
    program = f"""
import os, signal, sys
from pathlib import Path
from fedhelp_core.config.dispatch import DispatchConfig, SiloEntry
from fedhelp_dispatch import process
from fedhelp_dispatch.process import ProcessDispatcher, ProcessWork
from fedhelp_dispatch.request import WorkRequest
signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
began = ProcessWork.__init__
def interrupted(self, *arguments):
    os.kill(os.getpid(), {int(number)})
    began(self, *arguments)
    os.kill(os.getpid(), {int(number)})
ProcessWork.__init__ = interrupted
entry = SiloEntry(name="north", dispatch=DispatchConfig(kind="process", silo_config=Path("nowhere.yaml")))
dispatcher = ProcessDispatcher(Path("{tmp_path}"))
request = WorkRequest(run_id="r", entry=entry, action="check", store_url="{tmp_path}/store", deadline_s=60, lease_s=60.0)
try:
    dispatcher.start(request)
except KeyboardInterrupt:
    print(len(dispatcher._started), flush=True)
    dispatcher.close()
    print(dispatcher._started[0].outcome() is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("1\nTrue\n", "")
