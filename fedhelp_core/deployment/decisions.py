"""The ledger of what a hospital decided about its models: `adoptions.jsonl` beside `egress.jsonl`, append-only, each line chained to the one before.

Written by `adopted` under the model's lock, read by `fedhelp model list` and by the data officer. It never leaves.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import utc_now

Action = Literal["adopted", "kept", "forced", "rolled-back"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of the ledger."""

    model: str
    action: Action
    version: str
    """That is in use from now on, or, of 'kept', that was not adopted."""
    before: str = ""
    """In use until then; '' of none."""
    weights_sha256: str = ""
    reason: str = ""
    new: Mapping[str, float] = field(default_factory=dict)
    """Scores on the hospital's own test images."""
    old: Mapping[str, float] = field(default_factory=dict)
    by: str = ""
    time: str = ""


class DecisionLedger:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, decision: Decision) -> None:
        """Write `decision` down, with time, user and the hash of the line before.

        Raises:
            StorageFull, AccessDenied: it cannot be written.
            PermanentError: a line was altered.
        """
        self.decisions()
        with disk_errors(self.path), self.path.open("ab", buffering=0) as handle:
            entry = {**asdict(decision), "by": getpass.getuser(), "time": utc_now(), "previous_sha256": _digest(self._lines()[-1:])}
            handle.write(f"{json.dumps(entry, sort_keys=True)}\n".encode())
            os.fsync(handle.fileno())

    def decisions(self) -> list[Decision]:
        """All of them, the chain verified.

        Raises:
            PermanentError: a line was altered, or one is missing.
        """
        found: list[Decision] = []
        before = _digest([])
        for number, line in enumerate(self._lines(), start=1):
            try:
                entry = json.loads(line)
                chained = entry.pop("previous_sha256")
                found.append(Decision(**entry))
            except (ValueError, TypeError, KeyError, AttributeError) as e:
                raise PermanentError(f"{self.path}: line {number} is no decision ({type(e).__name__}); restore the ledger from a backup") from None
            if chained != before:
                raise PermanentError(
                    f"{self.path}: line {number - 1 or 1} was altered, or a line before line {number} is gone; restore the ledger from a backup")
            before = _digest([line])
        return found

    def _lines(self) -> list[bytes]:
        with disk_errors(self.path):
            return self.path.read_bytes().splitlines() if self.path.exists() else []


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(lines[0]).hexdigest() if lines else ""
