"""How every FedHelp process ends: an error is one sentence on standard error and its own exit code, never a traceback.

Called by the `__main__` of each component, by the silo worker and by the command line.
"""

from __future__ import annotations

import ctypes
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fedhelp_core.crashes import as_error
from fedhelp_core.errors import FedHelpError
from fedhelp_core.places import settle_user
from fedhelp_core.printable import printable, printable_lines

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
TERMINATION_LOG = Path("/dev/termination-log")
_LONGEST_MESSAGE = 4096  # bytes; Kubernetes keeps no more
_NOBODY_READS = 141  # what shells say of a program that SIGPIPE ended
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@contextmanager
def task(component: str) -> Iterator[Callable[[str], None]]:
    """Around a kfp component's body: an error ends the process with its sentence and exit code, not a traceback.

    Gives what takes the task's own sentence. It, or the error's, is the log's last line and Kubernetes' termination message.
    """
    told: list[str] = []
    if threading.current_thread() is threading.main_thread():
        ends_on_sigterm()
    settle_user()
    try:
        yield told.append
    except Exception as e:
        sys.exit(_exit_code_after(e, component, lambda known: _end_with_error(known, component)))
    for sentence in told:
        print(printable(sentence), flush=True)
        _leave_message(sentence)


def _end_with_error(error: FedHelpError, component: str) -> None:
    _leave_message("\n".join(error_lines(error)))
    print_error(error, component)


def _leave_message(text: str) -> None:
    """Where Kubernetes reads why a container ended, for `kubectl describe` and the UI; nothing outside of a pod."""
    if TERMINATION_LOG.exists():
        with suppress(OSError):
            TERMINATION_LOG.write_bytes(text.encode()[:_LONGEST_MESSAGE])


def exit_code_of(
    function: Callable[[], object], *, program: str, passing: tuple[type[Exception], ...] = (), say: Callable[[FedHelpError], None] | None = None,
) -> int:
    """Call `function`; 0, or the error's exit code after saying what was wrong. SIGTERM ends it with 143, Ctrl-C with 130.

    `passing`: exceptions that the caller's own caller explains. `say`: says what was wrong; None: on standard error.
    """
    ends_on_sigterm()
    settle_user()
    _print_anything()
    threading.excepthook = partial(_thread_ended, program)
    try:
        function()
        _flush()
    except passing:
        raise
    except KeyboardInterrupt as e:
        print(f"{program}: stopped; the same command goes on where it was", file=sys.stderr, flush=True)
        return int(e.args[0]) if e.args else 130
    except Exception as e:
        return _exit_code_after(e, program, say or (lambda known: print_error(known, program)))
    return 0


def ends_on_sigterm() -> None:
    """SIGTERM (stopped in the Kubeflow UI) unwinds the main thread, so that the silos' work is stopped on the way out."""
    signal.signal(signal.SIGTERM, _end)


def print_error(error: FedHelpError, program: str) -> None:
    """Say on standard error all that was wrong, a line each."""
    for line in error_lines(error):
        print(f"{program}: error: {line}", file=sys.stderr, flush=True)


def _exit_code_after(error: Exception, program: str, say: Callable[[FedHelpError], None]) -> int:
    """The exit code of `error`, after its sentences."""
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return _NOBODY_READS
    known = error if isinstance(error, FedHelpError) else as_error(error, program)
    with suppress(OSError):  # nobody reads standard error any more
        say(known)
    return known.exit_code


def _thread_ended(program: str, arguments: threading.ExceptHookArgs) -> None:
    """A thread met what nobody foresaw: said in one line, while the work of the others goes on."""
    error = arguments.exc_value
    if not isinstance(error, Exception) or (isinstance(error, BrokenPipeError) and _nobody_reads()):
        return
    known = as_error(error, f"{program} (thread {arguments.thread.name if arguments.thread else '?'})")
    with suppress(OSError):
        print(f"{program}: warning: {printable(known)}", file=sys.stderr, flush=True)


def _print_anything() -> None:
    """Names that the terminal's encoding lacks, or that are no text, are printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _nobody_reads() -> bool:
    """Whether the reader of standard output or error has gone. What is left is then dropped, or Python would complain at its exit."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no stream, or none of the system's
            descriptor = stream.fileno()
            look = select.poll()
            look.register(descriptor, 0)
            if any(events & select.POLLERR for _, events in look.poll(0)):
                gone = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    return gone


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


def keep_freed_memory() -> None:
    """Have glibc keep for the next allocation what is freed, pieces of up to 32 MiB: for a process that computes the same again and again.

    A network's activations are some megabytes each. Given back and taken again, their pages are mapped and zeroed anew for every image, which
    takes as long as the arithmetic. With another C library nothing changes.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
