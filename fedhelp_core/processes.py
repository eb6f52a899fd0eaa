"""How every FedHelp process ends: an error is one sentence on standard error and its own exit code, never a traceback.

Called by the `__main__` of each component, by the silo worker and by the command line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedhelp_core.errors import FedHelpError

FAILURE_VARIABLE = "FEDHELP_FAILURE_FILE"


@contextmanager
def task(component: str) -> Iterator[None]:
    """Around a kfp component's body: an error of ours ends the process with its sentence and exit code, not a traceback.

    Where $FEDHELP_FAILURE_FILE is set (by `fedhelp run`), the error is left there too, for whoever started the pipeline.
    """
    end_with_owner()
    if threading.current_thread() is threading.main_thread():
        ends_on_sigterm()
    try:
        yield
    except FedHelpError as e:
        failure_file = os.environ.get(FAILURE_VARIABLE, "")
        if failure_file:
            Path(failure_file).write_text(json.dumps({"component": component, "exit_code": e.exit_code, "message": str(e)}), encoding="utf-8")
        _explain(e, component)
        sys.exit(e.exit_code)


def exit_code_of(function: Callable[[], object], *, program: str) -> int:
    """Call `function`; 0, or the error's exit code after saying what was wrong. SIGTERM ends it with 143, Ctrl-C with 130."""
    ends_on_sigterm()
    try:
        function()
    except FedHelpError as e:
        _explain(e, program)
        return e.exit_code
    except KeyboardInterrupt as e:
        print(f"{program}: stopped; the same command goes on where it was", file=sys.stderr, flush=True)
        return int(e.args[0]) if e.args else 130
    return 0


def ends_on_sigterm() -> None:
    """SIGTERM (stopped in the Kubeflow UI) unwinds the main thread, so that the silos' work is stopped on the way out."""
    signal.signal(signal.SIGTERM, _end)


def _explain(error: FedHelpError, program: str) -> None:
    for line in str(error).splitlines():
        print(f"{program}: error: {line}", file=sys.stderr, flush=True)


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(143)  # what Ctrl-C raises, for which subprocess does not wait till its child has ended


OWNER_VARIABLE = "FEDHELP_OWNER"
_OWNER_LOOK = 0.2  # seconds between looks at the owner; bounds how long a component outlives `kill -9` of `fedhelp run`


def owner_mark(pid: int) -> str:
    """What $FEDHELP_OWNER holds: pid and start time, so that a reused pid is not mistaken for the owner."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return f"{pid}:{fields[19]}"


def end_with_owner() -> None:
    """Where $FEDHELP_OWNER is set (by `fedhelp run`), end this process as soon as that process is gone."""
    mark = os.environ.get(OWNER_VARIABLE, "")
    if mark:
        threading.Thread(target=_watch_owner, args=(mark,), daemon=True, name="owner-watch").start()


def _watch_owner(mark: str) -> None:
    while True:
        try:
            alive = owner_mark(int(mark.split(":")[0])) == mark
        except (OSError, ValueError, IndexError):
            alive = False
        if not alive:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(_OWNER_LOOK)
