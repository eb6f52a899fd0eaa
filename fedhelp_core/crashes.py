"""What nobody foresaw: an exception that is no FedHelpError, as one sentence, with its full trace in a file.

Called at the end of every process (processes.py), and by `fedhelp run`, the worker and the components, which know a better folder for
the file than the system's.
"""

from __future__ import annotations

import errno
import os
import platform
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedhelp_core.disk import Place
from fedhelp_core.errors import AccessDenied, ConfigError, Crashed, FedHelpError, NotFound, PermanentError, StorageFull
from fedhelp_core.places import require_temporary_folder
from fedhelp_core.printable import one_line

LOGS_VARIABLE = "FEDHELP_LOGS"
_ANYWHERE = Place({
    StorageFull: "no space left ({why}); free some, then run the same command",
    AccessDenied: "access refused ({why}); give this user the permission, or name another place",
    NotFound: "is not what is needed there ({why}); make it, or correct the path",
    PermanentError: "cannot be a path here ({why}); name another place",
})


@contextmanager
def crashes_kept_in(folder: Path, doing: str) -> Iterator[None]:
    """An exception that is no FedHelpError becomes one, and its trace goes to a file in `folder`, if that takes it.

    Raises:
        Crashed: `doing` met what nobody foresaw.
        StorageFull, AccessDenied, ConfigError: the machine has no room, refuses a file, or allows too few open files.
    """
    try:
        yield
    except FedHelpError:
        raise
    except Exception as e:
        raise as_error(e, doing, folder) from e


def as_error(error: Exception, doing: str, *folders: Path) -> FedHelpError:
    """`error` in a sentence that says where its trace is kept: in the first of `folders`, or of the usual places, that takes a file."""
    known, place = _of_the_machine(error), _kept(error, doing, folders)
    if known is not None:
        found = type(known)(f"{known}; the full trace is in {place}") if place is not None else known
    else:
        if place is None:
            _print_trace(error)
        trace = f"the full trace is in {place}" if place is not None else "the full trace is above"
        what = ": ".join(part for part in (type(error).__name__, one_line(error)) if part)
        found = Crashed(
            f"{doing} met an error that it does not know ({what}); {trace}: look there, then run the same command again, or report it",
            public=f"{type(error).__name__}, which nobody foresaw")
    for note in getattr(error, "__notes__", []):
        found.add_note(note)
    return found


def _of_the_machine(error: Exception) -> FedHelpError | None:
    """What the operating system refuses in a way that has a remedy, wherever it was met; None for everything else."""
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError) and error.filename is None:  # what tempfile raises
        try:
            require_temporary_folder()
        except ConfigError as e:
            return e
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ConfigError("more files are open than this process may have; raise the limit (ulimit -n), then run the same command")
    if isinstance(error.filename, str | bytes):
        path = one_line(os.fsdecode(error.filename))
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        path = "this machine's disk"
    else:  # of a connection, not of a file
        return None
    found = _ANYWHERE.error(error, path)
    return found if isinstance(found, FedHelpError) else None


def _kept(error: Exception, doing: str, folders: tuple[Path, ...]) -> Path | None:
    """The file that holds `error`'s trace; None where no folder takes one."""
    text = f"{doing}, {time.strftime('%Y-%m-%d %H:%M:%S %Z')}, Python {platform.python_version()}, {platform.platform()}\n\n"
    text += "".join(traceback.format_exception(error))
    for folder in (*folders, *_usual_folders()):
        path = folder.absolute() / f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}.log"
        with suppress(OSError, ValueError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # messages may name patients' files
            with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
    return None


def _print_trace(error: Exception) -> None:
    with suppress(OSError, ValueError):
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)


def _usual_folders() -> Iterator[Path]:
    """$FEDHELP_LOGS; outside of pods, whose other folders end with them, the user's state folder and the temporary one."""
    if logs := os.environ.get(LOGS_VARIABLE):
        yield Path(logs)
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return
    if state := os.environ.get("XDG_STATE_HOME"):
        yield Path(state) / "fedhelp"
    with suppress(RuntimeError):  # an arbitrary user without a home
        yield Path.home() / ".local" / "state" / "fedhelp"
    with suppress(OSError):
        yield Path(tempfile.gettempdir())
