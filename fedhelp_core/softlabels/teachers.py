"""Teachers: foundation models behind an API that say, once per public image, what they see (q of Eq 2).

`prefetch` opens them with `open.open_teacher`, has each `prepare` itself before the first question, and passes every answer
through `answers.checked_answers` before it is recorded. A new kind is one class with `config`, `prepare` and `ask`, opened in
`open`. Shapes: N images, S the side in pixels or voxels, K channels of an image, C the teacher's classes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.data.examples import image_shape
from fedhelp_core.errors import TeacherError, TeacherUnavailable


class NotAnswered(TeacherUnavailable):
    """The teacher certainly did not answer: not reached, or it said that it is busy. `retry_after`: seconds that it asked for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MaybeAnswered(TeacherUnavailable):
    """The request was sent and its answer did not arrive: the teacher may have answered, and may charge for it."""

    retry_after: float | None = None


class BatchTooLarge(TeacherError):
    """The teacher refuses this many images at once (HTTP 413)."""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a teacher is found to be before the first question."""

    batch_size: int
    """Images per request that it takes, at most what the config says."""
    concurrency: int
    """Requests at once that it takes, at most what the config says."""
    served_version: str
    """What the server itself says of the model's version; '' where it says nothing."""


@dataclass(frozen=True)
class Question:
    """What teachers are shown and what they have to say of it."""

    shape: tuple[int, ...]
    """Of an image: (K, S, S), or (K, S, S, S) of volumes."""
    masks: bool
    """Probabilities of every pixel or voxel, (N, C, S, ...), instead of class probabilities, (N, C)."""
    each: bool = False
    """Whether each of these is by itself, a finding's or a region's, and they need not sum to 1."""

    @classmethod
    def of(cls, task: TaskConfig) -> Question:
        """That of `task`."""
        return cls(image_shape(task), task.per_pixel, task.form in ("labels", "regions"))

    @property
    def sides(self) -> tuple[int, ...]:
        """Spatial sides of an image."""
        return self.shape[1:]

    def answer_shape(self, classes: int) -> tuple[int, ...]:
        """Of a teacher's answer about one image."""
        return (classes, *self.sides) if self.masks else (classes,)


def seen_by(teacher: TeacherConfig, task: TaskConfig) -> TaskConfig:
    """The task as this teacher sees its images: at its own `image_size`, where it has one."""
    return task if teacher.image_size is None else task.model_copy(update={"image_size": teacher.image_size})


class Teacher(Protocol):
    """Anything that can be asked about a batch of images, from several threads at once."""

    @property
    def config(self) -> TeacherConfig:
        """Name, version, class count, limits and prices."""

    def prepare(self, question: Question) -> Readiness:
        """Look at the model before anything is asked; called again at the end, to see that it is still the same.

        Raises:
            TeacherUnavailable: not reached.
            TeacherError, AccessDenied, ConfigError: it cannot be asked this.
        """

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        """One answer per image, as the config's `output` says; anything that numpy can read as (N, C) or (N, C, S, ...).

        `request_id` is the same whenever the same images are asked, so that a server that remembers ids can answer a
        repeated request without counting it again.

        Raises:
            NotAnswered, MaybeAnswered: the same call may work later.
            BatchTooLarge: fewer images may work.
            TeacherError: it answered with something unusable.
        """


@dataclass(frozen=True, kw_only=True)
class TeacherIdentity:
    """What makes two answers interchangeable. Where the teacher runs and how it is weighted are not part of it."""

    name: str
    version: str
    classes: int
    output: str
    preprocessing: str
    prompts: tuple[str, ...] = ()
    mask: tuple[int, ...] = ()
    """Sides of the masks that it answers with; () of class probabilities."""
    each: bool = False
    """Whether its probabilities are findings' or regions', each by itself."""

    @classmethod
    def of(cls, config: TeacherConfig, preprocessing: str, question: Question) -> TeacherIdentity:
        """The identity of `config`'s teacher when it is asked `question` about images prepared as `preprocessing` says."""
        return cls(
            name=config.name, version=config.version, classes=config.classes, output=config.output, preprocessing=preprocessing,
            prompts=config.prompts, mask=question.sides if question.masks else (), each=question.each)

    @classmethod
    def of_source(cls, source: Mapping[str, Any]) -> TeacherIdentity:
        """The identity that a distillation set's index names."""
        fields = {field: source[field] for field in ("name", "version", "classes", "output", "preprocessing")}
        return cls(**fields, prompts=tuple(source["prompts"]), mask=tuple(source["mask"]), each=source.get("each", False))

    @property
    def key(self) -> str:
        """sha256 (hex): the teacher's folder in the ledger."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("mask", "each") or value}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class MlflowTeacher:
    """A pyfunc model in a process of its own; loading waits for `prepare`, since it costs seconds. One question at a time."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self._predict: Callable[[NDArray[np.uint8]], Any] | None = None
        self._served_version = ""
        self._asked = threading.Lock()  # a pyfunc model promises nothing about threads

    def prepare(self, question: Question) -> Readiness:
        """Load the model.

        Raises:
            TeacherError: it cannot be loaded.
            TeacherUnavailable: it is on an MLflow server that was not reached.
        """
        del question  # a pyfunc model says too little about images to check it
        with self._asked:
            if self._predict is None:
                from fedhelp_core.tracking.models import load_pyfunc  # MLflow takes seconds to import

                self._predict, self._served_version = load_pyfunc(self.config.uri)
        return Readiness(batch_size=self.config.batch_size, concurrency=1, served_version=self._served_version)

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        """The model's `predict` of the batch.

        Raises:
            TeacherError: the model refuses the batch.
        """
        del request_id  # nothing is counted in this process
        assert self._predict is not None, "prepare comes first"
        with self._asked:
            return self._predict(images_NHWC)


def changed_version(name: str, version: str, before: str, now: str) -> TeacherError:
    """What to say where a teacher's model was exchanged under the same `version`."""
    return TeacherError(
        f"teacher {name!r} version {version!r}: the server's model was version {before} when it was first asked, now it is {now};"
        " nothing of the new one was recorded: give it another `version` in public_set.teachers, or put the old one back")
