"""How every FedHelp process ends: an error is one sentence on standard error and its own exit code, never a traceback.

Called by the `__main__` of each component, by the silo worker and by the command line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fedhelp_core.errors import FedHelpError
from fedhelp_core.printable import printable_lines

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


@contextmanager
def task(component: str) -> Iterator[None]:
    """Around a kfp component's body: an error of ours ends the process with its sentence and exit code, not a traceback."""
    if threading.current_thread() is threading.main_thread():
        ends_on_sigterm()
    try:
        yield
    except FedHelpError as e:
        explain(e, component)
        sys.exit(e.exit_code)


def exit_code_of(function: Callable[[], object], *, program: str) -> int:
    """Call `function`; 0, or the error's exit code after saying what was wrong. SIGTERM ends it with 143, Ctrl-C with 130."""
    return ended(function, program, lambda e: explain(e, program))


def ended(function: Callable[[], object], program: str, say: Callable[[FedHelpError], None]) -> int:
    """As `exit_code_of`; `say` says what was wrong."""
    ends_on_sigterm()
    try:
        function()
    except FedHelpError as e:
        say(e)
        return e.exit_code
    except KeyboardInterrupt as e:
        print(f"{program}: stopped; the same command goes on where it was", file=sys.stderr, flush=True)
        return int(e.args[0]) if e.args else 130
    return 0


def ends_on_sigterm() -> None:
    """SIGTERM (stopped in the Kubeflow UI) unwinds the main thread, so that the silos' work is stopped on the way out."""
    signal.signal(signal.SIGTERM, _end)


def explain(error: FedHelpError, program: str) -> None:
    """Say on standard error all that was wrong, a line each."""
    for line in error_lines(error):
        print(f"{program}: error: {line}", file=sys.stderr, flush=True)


def error_lines(error: BaseException) -> list[str]:
    """What `error` and the notes on it say, harmless on a terminal."""
    return printable_lines("\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])]))


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(143)  # what Ctrl-C raises, for which subprocess does not wait till its child has ended


def die_with_parent() -> None:
    """Linux: SIGKILL for this process when the one that started it ends, however that ends. Elsewhere: nothing."""
    import multiprocessing

    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        asked = multiprocessing.parent_process()
        if asked is not None and not asked.is_alive():  # while this process still imported what it needs
            os.kill(os.getpid(), signal.SIGKILL)
