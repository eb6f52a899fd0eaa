"""How right the hospital's models were, month by month, once the truth is known. Called by `fedhelp model audit`.

The record of answers has image hashes, a file of outcomes has the hashes' true classes or findings; both stay in the hospital. Of an image that was
answered about several times the last answer counts. Shapes: C classes, K findings.
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.deployment.answer_record import Answered
from fedhelp_core.deployment.scorer import NO_FINDING
from fedhelp_core.disk import disk_errors
from fedhelp_core.errors import ConfigError, DataError, listed
from fedhelp_core.objectives.metrics import (
    balanced_accuracy,
    balanced_accuracy_interval,
    confusion_matrix,
    finding_balanced_accuracy,
    mean_of_defined,
)

COLUMNS = ("sha256", "label", "when")
_SHA256 = 64  # hexadecimal digits
_BETWEEN = ", "  # findings in a line of the record


@dataclass(frozen=True)
class Outcome:
    """What an image turned out to show."""

    sha256: str
    label: str
    """Its class; '' of findings."""
    month: str
    """YYYY-MM; '' where the file does not say."""
    findings: tuple[tuple[str, bool], ...] = ()
    """Finding -> whether it is there, of those that are known."""


@dataclass(frozen=True)
class Month:
    """Answers of one month whose truth is known."""

    month: str
    versions: tuple[str, ...]
    images: int
    undecided: int
    right: int
    """Of the decided ones; of findings those images in which all that are known are right."""
    score: float
    """Balanced accuracy of all answers, undecided ones as what is likelier; of findings its mean over them."""
    interval: tuple[float, float]
    """95%, by the counts alone; NaN of findings."""


@dataclass(frozen=True)
class FindingAudit:
    """Answers about one finding in all months."""

    finding: str
    there: int
    """Images that show it."""
    found: int
    """Of these."""
    absent: int
    """Images that do not."""
    spared: int
    """Of these, where it was not found."""


@dataclass(frozen=True)
class Audit:
    """What both files come to."""

    months: tuple[Month, ...]
    unknown: int
    """Outcomes of images that nobody asked about."""
    open: int
    """Images that were answered about, and whose truth is not known."""
    findings: tuple[FindingAudit, ...] = ()
    """Of each; empty of classes."""


def outcomes_in(path: Path, task: TaskConfig) -> list[Outcome]:
    """The rows of a CSV with columns sha256, label and perhaps when (YYYY-MM or YYYY-MM-DD). Of findings there is a column for each in place of
    label: 1, 0, or nothing where it is not known.

    Raises:
        ConfigError: the task's answers are masks, which no label judges.
        DataError: with every row that cannot be used.
        NotFound, AccessDenied: the file cannot be read.
    """
    if task.per_pixel:
        raise ConfigError(f"task {task.name}: its answers are masks, which need a true mask beside them; audit judges classes and findings")
    with disk_errors(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError(f"{path}: UTF-8 expected; save it as CSV in UTF-8") from None
    reader = csv.DictReader(lines)
    columns = tuple(reader.fieldnames or ())
    findings = [name for name in task.classes if name in columns] if task.form == "labels" else []
    if "sha256" not in columns or not (findings or (task.form == "classes" and "label" in columns)) or len(set(columns)) != len(columns):
        wanted = f"a column for each of {', '.join(task.classes)[:200]}" if task.form == "labels" else "label"
        raise DataError(f"{path}: columns sha256 and {wanted} expected, when is optional, got {', '.join(columns)[:200] or 'none'}")
    found, problems = dict[str, Outcome](), list[str]()
    for number, row in enumerate(reader, start=2):
        problem = _problem(row, task, findings)
        cells = {name: (row.get(name) or "").strip() for name in (*COLUMNS, *findings)}
        outcome = Outcome(
            cells["sha256"].lower(), "" if findings else cells["label"], cells["when"][:7],
            tuple((name, cells[name] == "1") for name in findings if cells[name]))
        before = found.get(outcome.sha256, outcome)
        if not problem and (before.label, before.findings) != (outcome.label, outcome.findings):
            problem = "this image has another label further up"
        if problem:
            problems.append(f"{path}, line {number}: {problem}")
        else:
            found[outcome.sha256] = outcome
    if problems:
        raise DataError(listed(problems), public=f"outcomes that cannot be used ({len(problems)} rows)")
    return list(found.values())


def _problem(row: Mapping[str | None, str | None], task: TaskConfig, findings: Sequence[str]) -> str:
    sha256, label, when = ((row.get(column) or "").strip() for column in COLUMNS)
    if len(sha256) != _SHA256 or not set(sha256.lower()) <= set("0123456789abcdef"):
        return f"sha256: 64 hexadecimal digits expected, as results.csv has them, got {sha256[:80]!r}"
    for name in findings:
        if (cell := (row.get(name) or "").strip()) not in ("", "0", "1"):
            return f"{name}: 1, 0 or nothing expected, got {cell[:80]!r}"
    if not findings and label not in task.classes:
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
        ConfigError: the record cannot tell the names of the model's findings apart.
    """
    if task.form == "labels" and any(_BETWEEN in name for name in task.classes):
        raise ConfigError(f"model {model}: a finding is called with {_BETWEEN!r} in its name, which stands between findings in the record of answers")
    last = {line.sha256: line for line in lines if line.model == model and _is_answer(line.answer, task)}
    pairs = [(outcome, last[outcome.sha256]) for outcome in outcomes if outcome.sha256 in last]
    unknown, left = len(outcomes) - len(pairs), len(last) - len(pairs)
    if task.form == "labels":
        return Audit(tuple(_months_of_findings(pairs, task)), unknown, left, tuple(_findings(pairs, task)))
    return Audit(tuple(_months(pairs, task)), unknown, left)


def _is_answer(answer: str, task: TaskConfig) -> bool:
    if task.form == "labels":
        return answer == NO_FINDING or set(answer.split(_BETWEEN)) <= set(task.classes)
    return answer in task.classes


def _by_month(pairs: Sequence[tuple[Outcome, Answered]]) -> list[tuple[str, list[tuple[Outcome, Answered]]]]:
    by_month: dict[str, list[tuple[Outcome, Answered]]] = {}
    for outcome, line in pairs:
        by_month.setdefault(outcome.month or line.time[:7], []).append((outcome, line))
    return sorted(by_month.items())


def _findings(pairs: Sequence[tuple[Outcome, Answered]], task: TaskConfig) -> Iterator[FindingAudit]:
    for name in task.classes:
        known = [(there, name in line.answer.split(_BETWEEN)) for outcome, line in pairs for one, there in outcome.findings if one == name]
        yield FindingAudit(
            name, sum(there for there, _ in known), sum(there and said for there, said in known), sum(not there for there, _ in known),
            sum(not there and not said for there, said in known))


def _months_of_findings(pairs: Sequence[tuple[Outcome, Answered]], task: TaskConfig) -> Iterator[Month]:
    for month, found in _by_month(pairs):
        decided = [(outcome, line) for outcome, line in found if not line.undecided]
        scores = [finding_balanced_accuracy(np.array([one.spared, one.absent - one.spared, one.there - one.found, one.found]))
                  for one in _findings(found, task)]
        yield Month(
            month, tuple(dict.fromkeys(line.version for _, line in found)), len(found), len(found) - len(decided),
            sum(all(there == (name in line.answer.split(_BETWEEN)) for name, there in outcome.findings) for outcome, line in decided),
            mean_of_defined(scores), (math.nan, math.nan))


def _months(pairs: Sequence[tuple[Outcome, Answered]], task: TaskConfig) -> Iterator[Month]:
    for month, found in _by_month(pairs):
        true, said = (np.array([task.classes.index(name) for name in names]) for names in zip(
            *((outcome.label, line.answer) for outcome, line in found), strict=True))
        counts = confusion_matrix(true, said, len(task.classes))
        decided = [(outcome, line) for outcome, line in found if not line.undecided]
        yield Month(
            month, tuple(dict.fromkeys(line.version for _, line in found)), len(found), len(found) - len(decided),
            sum(outcome.label == line.answer for outcome, line in decided), balanced_accuracy(counts), balanced_accuracy_interval(counts))
