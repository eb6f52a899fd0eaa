"""Teachers and images of the tests here. Images are squares of one shade: shade v is answered with (v/256, 1 - v/256)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.data.public import Preparation, preparation_of
from fedhelp_core.softlabels.distillation_set import DistillationSet, load_distillation_set
from fedhelp_core.softlabels.ledger import Ledger
from fedhelp_core.softlabels.prefetch import PrefetchReport, prefetch
from fedhelp_core.softlabels.teachers import Question, Readiness, Teacher
from fedhelp_core.store.base import Store

SIDE = 8


def pictures(side: int) -> Preparation:
    """How colour pictures are prepared to squares of `side`."""
    return preparation_of(TaskConfig(image_size=side))


def about(side: int) -> Question:
    """Which classes squares of `side` show."""
    return Question.of(TaskConfig(image_size=side))


PICTURES, ABOUT = pictures(SIDE), about(SIDE)


def teacher_config(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**({"name": "teacher", "uri": "unused", "classes": 2, "batch_size": 2, "concurrency": 1} | changes))


def draw(folder: Path, *shades: int) -> Path:
    """A PNG square per shade."""
    folder.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(folder / f"{shade:03d}.png")
    return folder


def draw_distinct(folder: Path, count: int) -> Path:
    """`count` PNG squares, every one different: red and green say which it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (SIDE, SIDE), (number % 256, number // 256, 7)).save(folder / f"{number:05d}.png", compress_level=0)
    return folder


def shades_of(images_NHWC: NDArray[np.uint8]) -> list[int]:
    return [int(shade) for shade in images_NHWC[:, 0, 0, 0]]


def answer_to(images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    first_N = images_NHWC[:, 0, 0, 0] / 256
    return np.stack([first_N, 1 - first_N], axis=1)


class Killed(Exception):
    """Ends a prefetch in its middle."""


class CountingTeacher:
    """Remembers what it was asked. `then` may raise, or change the answer, at every request (its number from 0, the answer)."""

    def __init__(self, config: TeacherConfig | None = None, then: Callable[[int, Any], Any] = lambda _number, answer: answer) -> None:
        self.config = config or teacher_config()
        self.requests: list[list[int]] = []
        self.ids: list[str] = []
        self.prepared = 0
        self.served_version = ""
        self._then = then
        self._lock = threading.Lock()

    def prepare(self, question: Question) -> Readiness:
        self.prepared += 1
        return Readiness(batch_size=self.config.batch_size, concurrency=self.config.concurrency, served_version=self.served_version)

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        assert images_NHWC.shape[1:] == (SIDE, SIDE, 3)
        assert images_NHWC.dtype == np.uint8
        with self._lock:
            answer = self._then(len(self.requests), answer_to(images_NHWC))
            self.requests.append(shades_of(images_NHWC))
            self.ids.append(request_id)
        return answer

    @property
    def asked(self) -> list[int]:
        return sorted(shade for request in self.requests for shade in request)


def killed_at(request: int) -> Callable[[int, Any], Any]:
    def then(number: int, answer: Any) -> Any:
        if number == request:
            raise Killed
        return answer

    return then


def run(store: Store, images: Path, *teachers: Teacher, side: int = SIDE, **options: Any) -> PrefetchReport:
    public = PublicSetConfig(images=images, teachers=tuple(teacher.config for teacher in teachers))
    return prefetch(store, public, TaskConfig(image_size=side), teachers=teachers, **options)


def in_memory(loaded: DistillationSet) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and probabilities."""
    everything = torch.arange(loaded.images_NCHW.shape[0])
    return loaded.images_NCHW[everything], loaded.probabilities_NC[everything]


def rows_by_shade(store: Store, sha256: str) -> dict[int, list[float]]:
    images_NCHW, probabilities_NC = in_memory(load_distillation_set(store, sha256))
    return dict(zip(images_NCHW[:, 0, 0, 0].tolist(), probabilities_NC.tolist(), strict=True))


def record(ledger: Ledger, hashes: list[str], rows: Any) -> int:
    """Ask and answer about these images at once."""
    number = ledger.begin(hashes, run="", highest=None)
    ledger.record(number, hashes, np.asarray(rows, np.float16), run="", tries=1, seconds=0.1, served_version="")
    return number


def spoil(store: Store, key: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object behind the store's back."""
    body = change(store.get(key))
    store.delete(key)
    store.put(key, body)
