"""One thread that asks models, on a GPU about images of several questions at once. Called by `app`.

On a CPU images are computed one by one, as in evaluation, so that no answer depends on company (tests hold that). On a GPU whatever waits while
a batch is computed becomes the next batch; nothing waits for company. The thread count is the model's own, since answers depend on it, and
PyTorch's is set by the thread that computes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.algorithm.randomness import fix_arithmetic
from fedhelp_core.deployment.scorer import Answer, Scorer


@dataclass(frozen=True, eq=False)
class _Asked:
    scorer: Scorer
    image_CS: NDArray[np.uint8]
    answer: Future[Answer]


class Scoring:
    """The thread; `most`: images in a batch."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._threads_set: int | None = None
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    def ask(self, scorer: Scorer, images_CS: Sequence[NDArray[np.uint8]]) -> list[Future[Answer]]:
        """What `scorer` says of each prepared image, later. One that is cancelled before its turn is never computed."""
        asked = [_Asked(scorer, image, Future()) for image in images_CS]
        for one in asked:
            self._queue.put(one)
        return [one.answer for one in asked]

    def close(self) -> None:
        """End the thread, after what was asked."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        after: _Asked | None = None
        while True:
            first = after or self._queue.get()
            if first is None:
                return
            batch, after, ends = self._beside(first)
            self._answer([one for one in batch if one.answer.set_running_or_notify_cancel()])
            if ends:
                return

    def _beside(self, first: _Asked) -> tuple[list[_Asked], _Asked | None, bool]:
        """`first` and what waits behind it for the same model; what comes after that; whether it is the end."""
        batch = [first]
        while len(batch) < min(self._most, first.scorer.batch):
            try:
                other = self._queue.get_nowait()
            except queue.Empty:
                break
            if other is None:
                return batch, None, True
            if other.scorer is not first.scorer:
                return batch, other, False
            batch.append(other)
        return batch, None, False

    def _answer(self, batch: Sequence[_Asked]) -> None:
        if not batch:
            return
        scorer = batch[0].scorer
        try:
            if scorer.contract.threads != self._threads_set:
                fix_arithmetic(scorer.contract.threads)
                self._threads_set = scorer.contract.threads
            answers = scorer.answers(np.stack([one.image_CS for one in batch]))
        except Exception as e:  # whoever asked is told, and the next batch goes on
            for one in batch:
                one.answer.set_exception(e)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.answer.set_result(answer)
