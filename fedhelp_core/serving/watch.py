"""What the served model sees and says, beside what it did when it was adopted: Prometheus' figures, and the hospital's record. Called by `app`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from fedhelp_core import telemetry
from fedhelp_core.deployment.answer_record import AnswerRecord, answered_now
from fedhelp_core.deployment.images_in import Prepared
from fedhelp_core.deployment.reference import Seen, by_chance, counted, intensity_of, psi, seen
from fedhelp_core.deployment.results import counted_decision
from fedhelp_core.deployment.scorer import Answer, Scorer
from fedhelp_core.errors import FedHelpError
from fedhelp_core.printable import printable

_RECENT = 1000  # images that today is made of
_ENOUGH = 50  # below it chance alone gives more than the alert's threshold
_log = logging.getLogger("fedhelp.serving")


class Watch:
    """Of one model, from when it begins to answer. Called by several threads."""

    def __init__(self, scorer: Scorer, state: Path) -> None:
        self._scorer = scorer
        self._record = AnswerRecord(state)
        self._recent: deque[Seen] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()
        self._unrecorded = False

    def begins(self) -> None:
        """The model answers from now on."""
        contract = self._scorer.contract
        telemetry.model_served(contract.name, contract.version)
        if contract.reference is not None:
            for of, counts in contract.reference.by_name().items():
                telemetry.seen_at_adoption(of, counts)

    def saw(self, asked: Sequence[Prepared], answers: Sequence[Answer]) -> None:
        """These images were answered about."""
        with self._lock:
            for one, answer in zip(asked, answers, strict=True):
                assert one.image_CS is not None
                self._recent.append(seen(one.image_CS, answer.confidence, answer.decided))
                telemetry.answered(counted_decision(self._scorer, answer), answer.confidence, intensity_of(one.image_CS))
            self._compare()
            self._write(asked, answers)

    def _compare(self) -> None:
        contract = self._scorer.contract
        if contract.reference is None or len(self._recent) < _ENOUGH:
            return
        now = counted(self._recent, len(contract.task.classes)).by_name()
        for of, then in contract.reference.by_name().items():
            telemetry.drifted(of, psi(now[of], then), by_chance(now[of], then))

    def _write(self, asked: Sequence[Prepared], answers: Sequence[Answer]) -> None:
        """A record that cannot be written keeps no answer back: it is counted, and said once."""
        try:
            self._record.append(answered_now("serve", self._scorer, asked, answers))
            self._unrecorded = False
        except (FedHelpError, OSError) as e:
            telemetry.unrecorded(len(answers))
            if not self._unrecorded:
                _log.warning("answers are given, but not recorded: %s", printable(e))
            self._unrecorded = True
