"""What a worker says, and who hears it. Called by dispatch/worker.py.

The hub reads a worker's standard output and error (a pod's log), so these carry the public half of every error alone. The whole of it, and
whatever libraries print, goes to `errors.log` in the silo's state folder, which nobody but the hospital reads. A worker that was forked on the
hub's own machine, by the user who owns both, says the private half on standard error too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from fedhelp_core.config.silo import SiloConfig
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import FedHelpError, public_half
from fedhelp_core.printable import printable
from fedhelp_core.processes import error_lines

LOG = "errors.log"
_MOST_BYTES = 16 * 2**20  # of the log before it is put aside: years of errors, or a library that never stops


class Disclosure:
    """Standard output and error of one worker, from `with` to its end; `own_machine`: whoever reads them owns the data."""

    def __init__(self, program: str, *, own_machine: bool = False) -> None:
        self._program = program
        self._own_machine = own_machine
        self._private: TextIO | None = None
        self._folders: dict[str, str] = {}
        self._public = sys.stdout

    def __enter__(self) -> Self:
        if not self._own_machine:
            sys.stdout.flush()
            sys.stderr.flush()
            self._saved = os.dup(1), os.dup(2)
            self._public = os.fdopen(os.dup(1), "w", encoding="utf-8")
            self._silence(os.open(os.devnull, os.O_WRONLY))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._own_machine:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(self._saved, start=1):
                os.dup2(saved, number)
                os.close(saved)
            self._public.close()
        if self._private is not None:
            self._private.close()

    def belongs_to(self, config: SiloConfig) -> None:
        """From now on the private half is written to `config`'s state folder.

        Raises:
            AccessDenied, StorageFull: the state folder cannot be written.
        """
        fields = {"state": config.state, **{f"data.{name}": value for name, value in config.data}}
        self._folders = {str(value): name for name, value in fields.items() if isinstance(value, Path)}
        log = config.state / LOG
        with disk_errors(log):
            config.state.mkdir(parents=True, exist_ok=True)
            if log.exists() and log.stat().st_size > _MOST_BYTES:
                log.replace(log.with_suffix(".old.log"))
            self._private = log.open("a", encoding="utf-8", buffering=1)
        os.chmod(log, 0o600)
        if not self._own_machine:
            self._silence(os.dup(self._private.fileno()))

    def event(self, event: Mapping[str, object]) -> None:
        """One JSON object a line: numbers, names of the run's own, nothing from the data."""
        print(json.dumps(event), file=self._public, flush=True)

    def error(self, error: FedHelpError) -> None:
        """The two halves of `error`, each to whom it belongs."""
        whole = error_lines(error)
        said, kept_back = self._public_half(error)
        if self._private is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._private.writelines(f"{now} {self._program}: {line}\n" for line in whole)
        if kept_back:
            if self._own_machine:
                print(*(f"{self._program}: {line}" for line in whole), sep="\n", file=sys.stderr, flush=True)
            said += (
                f"; all of it is in {LOG} in the silo's state folder" if self._private is not None
                else "; look at silo.yaml on the machine that holds it (in a cluster: `helm test`)")
        print(f"{self._program}: error: {said}", file=sys.stderr if self._own_machine else self._public, flush=True)

    def _public_half(self, error: FedHelpError) -> tuple[str, bool]:
        """In one line, without the hospital's folders, and whether something was kept back.

        Where one of the data's folders is named, a file may be too, and only the kind of error is said.
        """
        said = public_half(error)
        kept_back = said != str(error)
        for folder, field in sorted(self._folders.items(), reverse=True):  # the deeper first
            if folder in said:
                said, kept_back = (said.replace(folder, f"<{field}>"), kept_back) if field == "state" else (type(error).__name__, True)
        return printable("; ".join(said.splitlines())), kept_back

    def _silence(self, descriptor: int) -> None:
        """Have everything that anybody prints go to `descriptor`."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
