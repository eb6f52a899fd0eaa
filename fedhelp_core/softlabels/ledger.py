"""The ledger: every question that a teacher was ever sent and every answer that it gave. Append-only, write-once, crash-safe.

    softlabels/ledger/<teacher key>/requests/00000001.json       written before the question is sent: {batch, images, run}
    softlabels/ledger/<teacher key>/answers/00000001-<batch sha16>.safetensors
                                                                 its answer: images uint8 (N, 32), answers (answers.py), a note
    softlabels/ledger/<teacher key>/failures/00000001.json       or why there certainly is none: {outcome, reason}
    softlabels/teachers/<name>/<version sha16>.json              what this name and version answered as: {classes, served_version}

Numbers are one sequence over all processes, since a request's object can be written once only: so a budget holds however
many tasks ask. A number with neither answer nor failure is in doubt: it was sent, or about to be, when its process was killed
or its connection broke; the teacher may have answered and may charge for it. Of two answers about an image, which only
prefetches at the same time can bring about, the one with the lower number counts. `asking` writes, `prefetch` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.teachers import TeacherBudget
from fedhelp_core.errors import ConfigError, NotFound, TeacherError
from fedhelp_core.protocol.facts import Account
from fedhelp_core.protocol.keys import teacher_card, teacher_ledger
from fedhelp_core.softlabels.answers import AnswerEncoding, check_recorded
from fedhelp_core.softlabels.teachers import TeacherIdentity, changed_version
from fedhelp_core.softlabels.tensors import hash_rows, note_of, pack, unpack
from fedhelp_core.store.base import Store

_READERS = 8  # objects fetched at a time: a bucket answers in tens of ms, and a set of 100 000 images has 1600 batches
_MAX_BATCH_BYTES = 256 * 2**20
_MAX_NOTE_BYTES = 64 * 1024
_KEPT_BYTES = 64 * 2**20  # answers kept in memory; what is older is read again when it is needed
_NAME = re.compile(r"(requests|failures)/(\d{8})\.json|(answers)/(\d{8})-([0-9a-f]{16})\.safetensors")

REFUSED, UNUSABLE = "refused", "unusable"


class BudgetReached(ConfigError):
    """One request more would be above the teacher's max_requests or max_cost."""


def batch_sha(hashes: Sequence[str]) -> str:
    """sha256 (hex) that names the batch with these image hashes: also the id of the request that asks about it."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


@dataclass(frozen=True)
class _Answered:
    key: str
    run: str
    images: int
    tries: int
    seconds: float


@dataclass(frozen=True)
class _Batch:
    hashes: list[str]
    answers: NDArray[Any]
    note: _Answered


class Ledger:
    """What one teacher was asked and has answered so far. Threads may share it.

    Raises:
        ConfigError: this name and version answered with another class count before.
        TeacherError: a recorded batch is damaged or forged.
    """

    def __init__(self, store: Store, teacher: TeacherIdentity) -> None:
        self._store = store
        self._teacher = teacher
        self.encoding = AnswerEncoding.of(teacher)
        self.folder = teacher_ledger(teacher.key)
        """Prefix of all its objects in the store."""
        self._card = teacher_card(teacher.name, teacher.version)
        self._lock = threading.Lock()
        self._place: dict[str, tuple[int, int]] = {}  # image -> request's number, row
        self._answered: dict[int, _Answered] = {}
        self._unanswered: set[int] = set()
        self._failed: set[int] = set()
        self._last = 0
        self._gaps: set[int] = set()  # numbers below _last that no listed object has: not written yet, or missed while they were
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._served_version: str | None = None
        self._read_card()
        self.refresh()

    def __contains__(self, image: str) -> bool:
        """Whether an answer about the image with this hash is recorded."""
        return image in self._place

    def refresh(self) -> None:
        """Take in what other processes have recorded since."""
        listed = [(match, key) for key in self._store.list(self.folder) if (match := _NAME.fullmatch(key, len(self.folder)))]
        sent = {int(match[2]) for match, _ in listed if match[1] == "requests"}
        keys = {int(match[4]): key for match, key in listed if match[3]}
        with ThreadPoolExecutor(_READERS) as pool:
            for number, batch in zip(
                    new := sorted(set(keys) - set(self._answered)), pool.map(lambda n: self._read(keys[n]), new), strict=True):
                self._take_in(number, batch)
        with self._lock:
            self._failed = {int(match[2]) for match, _ in listed if match[1] == "failures"}
            self._unanswered = sent - set(self._answered)
            self._last = max(self._last, *sent, *keys, 0)
            self._gaps = set(range(1, self._last)) - sent - set(self._answered)

    # ---- asking

    def check_served_version(self, version: str) -> None:
        """That the server's model is the one that answered under this name and version before.

        Raises:
            TeacherError: it is another.
        """
        if version and self._served_version and version != self._served_version:
            raise changed_version(self._teacher.name, self._teacher.version, self._served_version, version)

    def begin(self, hashes: Sequence[str], *, run: str, highest: int | None) -> int:
        """The number of a new request about these images, recorded before it is sent.

        Raises:
            BudgetReached: the number would be above `highest`.
        """
        body = json.dumps({"batch": batch_sha(hashes), "images": len(hashes), "run": run}, sort_keys=True).encode()
        while True:
            with self._lock:
                number = min(self._gaps, default=self._last + 1)
                if highest is not None and number > highest:
                    raise BudgetReached(f"teacher {self._teacher.name!r}: the budget is used up")
                self._gaps.discard(number)
                self._last = max(self._last, number)
            if self._store.put_new(self._key("requests", number), body):
                with self._lock:
                    self._unanswered.add(number)
                return number

    def record(
        self, number: int, hashes: Sequence[str], answers: NDArray[Any], *, run: str, tries: int, seconds: float, served_version: str,
    ) -> None:
        """Keep the answer to request `number`, whose rows are in the order of `hashes`."""
        if self._served_version is None:
            self._write_card(served_version)
        key = f"{self.folder}answers/{number:08d}-{batch_sha(hashes)[:16]}.safetensors"
        note = _Answered(key, run, len(hashes), tries, round(seconds, 6))
        arrays = {"images": hash_rows(hashes), **self.encoding.packed(answers)}
        self._store.put_new(key, pack(arrays, {"run": run, "tries": tries, "seconds": note.seconds}))
        self._take_in(number, _Batch(list(hashes), answers, note))

    def fail(self, number: int, outcome: str, reason: str) -> None:
        """Note that request `number` certainly has no answer (`refused`) or one that cannot be used (`unusable`)."""
        self._store.put_new(self._key("failures", number), json.dumps({"outcome": outcome, "reason": reason[:1000]}).encode())
        with self._lock:
            self._failed.add(number)

    def highest_number(self, budget: TeacherBudget, *, batch_size: int) -> int | None:
        """The number that no later request may exceed, so that whoever else asks too, the budget holds; None without one.

        A listing is no moment: others write while it is read. So a number that is missing in it counts as one still to be asked.
        """
        account, asked = self.account(budget), self._last - len(self._gaps)
        limits = []
        if budget.max_requests is not None:
            limits.append(asked + budget.max_requests - account.requests - account.in_doubt - account.unusable)
        full = budget.price_per_request + batch_size * budget.price_per_image
        if budget.max_cost is not None and full > 0:
            limits.append(asked + int((budget.max_cost - account.cost) / full + 1e-9))
        return min(limits) if limits else None

    # ---- reading

    def rows(self, images: Sequence[str]) -> NDArray[Any]:
        """The answers about these images, (n, ...) in their order; all of them are recorded."""
        found = np.empty((len(images), *self.encoding.shape), self.encoding.dtype)
        by_number: dict[int, list[tuple[int, int]]] = {}
        for i, image in enumerate(images):
            number, row = self._place[image]
            by_number.setdefault(number, []).append((i, row))
        for number, pairs in by_number.items():
            targets, rows = zip(*pairs, strict=True)
            found[list(targets)] = self._answers_of(number)[list(rows)]
        return found

    def account(self, budget: TeacherBudget, *, run: str | None = None) -> Account:
        """What was asked in `run` (None: ever), as far as the last `refresh` or this process knows."""
        with self._lock:
            answered = [note for note in self._answered.values() if run in (None, note.run)]
            open_numbers, failed = sorted(self._unanswered - set(self._answered)), set(self._failed)
        ends: dict[str, list[int]] = {"in_doubt": [], REFUSED: [], UNUSABLE: []}
        for number in open_numbers:
            request = self._note("requests", number)
            if run in (None, request.get("run")):
                outcome = str(self._note("failures", number).get("outcome")) if number in failed else "in_doubt"
                ends.get(outcome, ends["in_doubt"]).append(int(request.get("images", 0)))
        charged = [*(note.images for note in answered), *ends["in_doubt"], *ends[UNUSABLE]]
        latencies = [note.seconds for note in answered] or [0.0]
        return Account(
            requests=len(answered), images=sum(note.images for note in answered), retried=sum(note.tries - 1 for note in answered),
            in_doubt=len(ends["in_doubt"]), in_doubt_images=sum(ends["in_doubt"]), refused=len(ends[REFUSED]), unusable=len(ends[UNUSABLE]),
            cost=len(charged) * budget.price_per_request + sum(charged) * budget.price_per_image,
            latency_p50=float(np.percentile(latencies, 50)), latency_p95=float(np.percentile(latencies, 95)))

    # ---- objects

    def _take_in(self, number: int, batch: _Batch) -> None:
        with self._lock:
            self._answered[number] = batch.note
            self._unanswered.discard(number)
            for row, image in enumerate(batch.hashes):
                known = self._place.get(image)
                if known is None or number < known[0]:
                    self._place[image] = (number, row)
            self._keep(number, batch.answers)

    def _answers_of(self, number: int) -> NDArray[Any]:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        answers = self._read(self._answered[number].key).answers
        with self._lock:
            self._keep(number, answers)
        return answers

    def _keep(self, number: int, answers: NDArray[Any]) -> None:
        self._kept[number] = answers
        most = max(1, _KEPT_BYTES // max(1, answers.nbytes))
        while len(self._kept) > most:
            self._kept.popitem(last=False)

    def _read(self, key: str) -> _Batch:
        body = self._store.get(key, _MAX_BATCH_BYTES)
        try:
            arrays = unpack(body, {"images": ("uint8", (None, 32)), **self.encoding.expected()})
            note = note_of(body)
            hashes = [row.tobytes().hex() for row in arrays["images"]]
            answers = self.encoding.unpacked(arrays)
            _check_batch(key, hashes, answers)
            check_recorded(answers, self.encoding)
            answered = _Answered(key, str(note["run"]), len(hashes), int(note["tries"]), float(note["seconds"]))
        except (ValueError, KeyError, TypeError) as e:
            raise TeacherError(f"recorded answers {key}: {e}; the object is damaged or forged, delete it to ask again") from e
        return _Batch(hashes, answers, answered)

    def _note(self, kind: str, number: int) -> dict[str, Any]:
        key = self._key(kind, number)
        try:
            note = json.loads(self._store.get(key, _MAX_NOTE_BYTES))
        except ValueError:
            note = None
        if not isinstance(note, dict):
            raise TeacherError(f"{key}: is not what was written there; delete it to go on")
        return note

    def _key(self, kind: str, number: int) -> str:
        return f"{self.folder}{kind}/{number:08d}.json"

    def _read_card(self) -> None:
        try:
            card = json.loads(self._store.get(self._card, _MAX_NOTE_BYTES))
            classes, self._served_version = card["classes"], str(card["served_version"])
        except NotFound:
            return
        except (ValueError, KeyError, TypeError) as e:
            raise TeacherError(f"{self._card}: is not what was written there; delete it to go on") from e
        if classes != self._teacher.classes:
            raise ConfigError(
                f"teacher {self._teacher.name!r} version {self._teacher.version!r}: config says {self._teacher.classes} classes, but it"
                f" answered with {classes} before; correct `classes`, or give the new teacher another version")

    def _write_card(self, served_version: str) -> None:
        document = {
            "name": self._teacher.name, "version": self._teacher.version, "classes": self._teacher.classes, "served_version": served_version}
        self._store.put_new(self._card, json.dumps(document, sort_keys=True).encode())
        self._read_card()
        self.check_served_version(served_version)


def _check_batch(key: str, hashes: list[str], answers: NDArray[Any]) -> None:
    """ValueError where the batch is not what `record` wrote under this name."""
    if len(hashes) != len(answers):
        raise ValueError(f"{len(hashes)} images but {len(answers)} answers")
    if batch_sha(hashes)[:16] != key.removesuffix(".safetensors").rpartition("-")[2]:
        raise ValueError("the images in it are not those of its name")
