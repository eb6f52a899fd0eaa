"""How right the hospital's models were, month by month, once the truth is known. Called by `fedhelp model audit`.

The record of answers has image hashes, a file of outcomes has the hashes' true classes; both stay in the hospital. Of an image that was answered
about several times the last answer counts.
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.deployment.answer_record import Answered
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError, DataError, listed
from fedhelp_core.objectives.metrics import balanced_accuracy, balanced_accuracy_interval, confusion_matrix

COLUMNS = ("sha256", "label", "when")
_SHA256 = 64  # hexadecimal digits


@dataclass(frozen=True)
class Outcome:
    """What an image turned out to show."""

    sha256: str
    label: str
    month: str
    """YYYY-MM; '' where the file does not say."""


@dataclass(frozen=True)
class Month:
    """Answers of one month whose truth is known."""

    month: str
    versions: tuple[str, ...]
    images: int
    undecided: int
    right: int
    """Of the decided ones."""
    score: float
    """Balanced accuracy of all answers, undecided ones as their likeliest class."""
    interval: tuple[float, float]
    """95%, by the counts alone."""


@dataclass(frozen=True)
class Audit:
    """What both files come to."""

    months: tuple[Month, ...]
    unknown: int
    """Outcomes of images that nobody asked about."""
    open: int
    """Images that were answered about, and whose truth is not known."""


def outcomes_in(path: Path, task: TaskConfig) -> list[Outcome]:
    """The rows of a CSV with columns sha256, label and perhaps when (YYYY-MM or YYYY-MM-DD).

    Raises:
        DataError: with every row that cannot be used.
        NotFound, AccessDenied: the file cannot be read.
    """
    with disk_errors(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{path}: UTF-8 expected; save it as CSV in UTF-8") from None
    reader = csv.DictReader(lines)
    columns = tuple(reader.fieldnames or ())
    if not {"sha256", "label"} <= set(columns) or len(set(columns)) != len(columns):
        raise DataError(f"{path}: columns sha256 and label expected, when is optional, got {', '.join(columns)[:200] or 'none'}")
    found, problems = dict[str, Outcome](), list[str]()
    for number, row in enumerate(reader, start=2):
        problem = _problem(row, task)
        sha256 = (row["sha256"] or "").strip().lower()
        if not problem and sha256 in found and found[sha256].label != (row["label"] or "").strip():
            problem = "this image has another label further up"
        if problem:
            problems.append(f"{path}, line {number}: {problem}")
        else:
            found[sha256] = Outcome(sha256, row["label"].strip(), (row.get("when") or "").strip()[:7])
    if problems:
        raise DataError(listed(problems), public=f"outcomes that cannot be used ({len(problems)} rows)")
    return list(found.values())


def _problem(row: Mapping[str | None, str | None], task: TaskConfig) -> str:
    sha256, label, when = ((row.get(column) or "").strip() for column in COLUMNS)
    if len(sha256) != _SHA256 or not set(sha256.lower()) <= set("0123456789abcdef"):
        return f"sha256: 64 hexadecimal digits expected, as results.csv has them, got {sha256[:80]!r}"
    if label not in task.classes:
        return f"label: one of {', '.join(task.classes)} expected, got {label[:80]!r}"
    if when:
        try:
            datetime.date.fromisoformat(f"{when}-01" if len(when) == 7 else when)
        except ValueError:
            return f"when: YYYY-MM-DD or YYYY-MM expected, got {when[:80]!r}"
    return ""


def audited(lines: Sequence[Answered], outcomes: Sequence[Outcome], model: str, task: TaskConfig) -> Audit:
    """The score of `model` by month: that of the outcome where the file says when, else that of the answer.

    Raises:
        ConfigError: the model's answers are findings or masks, which no single label judges.
    """
    if task.form != "classes":
        answers = "masks, which need a true mask" if task.per_pixel else "findings, which need the true ones"
        raise ConfigError(f"model {model}: answers with {answers} beside them; audit judges classes")
    last = {line.sha256: line for line in lines if line.model == model and line.answer in task.classes}
    pairs = [(outcome, last[outcome.sha256]) for outcome in outcomes if outcome.sha256 in last]
    return Audit(tuple(_months(pairs, task)), len(outcomes) - len(pairs), len(last) - len(pairs))


def _months(pairs: Sequence[tuple[Outcome, Answered]], task: TaskConfig) -> Iterator[Month]:
    by_month: dict[str, list[tuple[Outcome, Answered]]] = {}
    for outcome, line in pairs:
        by_month.setdefault(outcome.month or line.time[:7], []).append((outcome, line))
    for month, found in sorted(by_month.items()):
        true, said = (np.array([task.classes.index(name) for name in names]) for names in zip(
            *((outcome.label, line.answer) for outcome, line in found), strict=True))
        counts = confusion_matrix(true, said, len(task.classes))
        decided = [(outcome, line) for outcome, line in found if not line.undecided]
        yield Month(
            month, tuple(dict.fromkeys(line.version for _, line in found)), len(found), len(found) - len(decided),
            sum(outcome.label == line.answer for outcome, line in decided), balanced_accuracy(counts), balanced_accuracy_interval(counts))
