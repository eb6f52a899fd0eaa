"""The hospital's own record of what its models answered: image hashes and answers, no names, appended to and never changed.

    answers/2026-11.jsonl      in the state folder, a line an image, a file a month (UTC)

Written by `fedhelp predict` and `fedhelp serve`, read by `fedhelp model audit` once the truth is known. It stays in the hospital.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fedhelp_core.deployment.images_in import Prepared
from fedhelp_core.deployment.scorer import Answer, MaskAnswer, Scorer
from fedhelp_core.disk import disk_errors
from fedhelp_core.protocol.documents import utc_now


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One line."""

    time: str
    """UTC."""
    by: Literal["predict", "serve"]
    model: str
    version: str
    weights_sha256: str
    sha256: str
    """Of the image, as results have it."""
    answer: str
    """The class, or the findings that are found, also where nothing is decided; '' of a mask."""
    confidence: float
    """Calibrated probability of that class; of findings, of what is said of the least sure one; of a mask its expected Dice."""
    undecided: bool


def answered_now(by: Literal["predict", "serve"], scorer: Scorer, asked: Sequence[Prepared], answers: Sequence[Answer]) -> list[Answered]:
    """Lines of answers that were just made."""
    contract, now = scorer.contract, utc_now()
    return [Answered(
        time=now, by=by, model=contract.name, version=contract.version, weights_sha256=contract.weights_sha256, sha256=one.sha256,
        answer="" if isinstance(answer, MaskAnswer) else scorer.names_of(answer), confidence=answer.confidence, undecided=answer.undecided)
        for one, answer in zip(asked, answers, strict=True)]


class AnswerRecord:
    """The record in a hospital's state folder."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "answers"

    def append(self, lines: Sequence[Answered]) -> None:
        """Write `lines`, in one piece, so that several processes may append. A line that a kill cut short is ended first.

        Raises:
            StorageFull, AccessDenied: they cannot be written.
        """
        by_month: dict[str, list[Answered]] = {}
        for line in lines:
            by_month.setdefault(line.time[:7], []).append(line)
        for month, found in by_month.items():
            path = self.folder / f"{month}.jsonl"
            with disk_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                body = "".join(f"{json.dumps(asdict(line), sort_keys=True)}\n" for line in found).encode()
                with path.open("ab+", buffering=0) as handle:
                    handle.seek(0, os.SEEK_END)
                    if handle.tell() and os.pread(handle.fileno(), 1, handle.tell() - 1) != b"\n":
                        body = b"\n" + body
                    handle.write(body)

    def read(self) -> tuple[list[Answered], int]:
        """All lines, the oldest month first; and how many could not be read: cut short by a kill, or altered.

        Raises:
            AccessDenied: a file cannot be read.
        """
        found: list[Answered] = []
        damaged = 0
        for path in sorted(self.folder.glob("????-??.jsonl")):
            with disk_errors(path):
                lines = path.read_bytes().splitlines()
            for line in lines:
                try:
                    found.append(Answered(**json.loads(line)))
                except (ValueError, TypeError):
                    damaged += bool(line.strip())
        return found, damaged
