"""Folders that libraries need and a machine may lack: one for temporary files, and a home for what they cache and configure.

Called at the begin of every process (processes.py), by `check` and by workers: containers run under a user number that no list of users
knows, with a read-only root and without HOME. What FedHelp itself keeps has its place in a config, never here.
"""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError


def require_temporary_folder(instead: Path | None = None) -> None:
    """Nothing where temporary files have a folder; where they have none, `instead` is it from now on.

    Raises:
        ConfigError: there is none that this user can write to.
        AccessDenied, StorageFull: `instead` cannot be it.
    """
    try:
        tempfile.gettempdir()
    except OSError as e:
        if instead is None:
            raise ConfigError(
                "no folder for temporary files: neither $TMPDIR nor /tmp, /var/tmp or the working folder can be written to; set TMPDIR to one that"
                " can, in a pod an emptyDir volume") from e
        with disk_errors(instead):
            instead.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(instead)


def settle_user() -> None:
    """Give this process a home and a user's name where it has none: Matplotlib, MLflow and PyTorch end in errors without.

    Without a temporary folder either, it goes without: `require_temporary_folder` says what to do.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user number that no list knows
        os.environ["USER"] = f"uid-{os.getuid()}"
    try:
        usable = os.access(Path.home(), os.W_OK | os.X_OK)
    except RuntimeError:
        usable = False
    if not usable:
        with suppress(OSError):
            os.environ["HOME"] = str(_home_of(os.getuid()))


def _home_of(user: int) -> Path:
    """The same folder for all processes of `user`, unless somebody else has it."""
    home = Path(tempfile.gettempdir()) / f"fedhelp-home-{user}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022
    return home if own else Path(tempfile.mkdtemp(prefix="fedhelp-home-"))
