"""Teachers: foundation models behind an API that say, once per public image, which classes they see (q of Eq 2).

`prefetch` opens them with `open_teacher`, has each `prepare` itself before the first question, and passes every answer
through `checked_answers` before it is recorded. A new kind is one class with `config`, `prepare` and `ask`, and one line in
`_KINDS`. An answer is one array per image, of the shape and type that `AnswerForm` says: class probabilities (C,) here; a
teacher of masks has another form and nothing else changes. Shapes: N images, H height, W width, C the teacher's classes.
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

from fedhelp_core.config import TeacherConfig
from fedhelp_core.errors import TeacherError, TeacherUnavailable

SUM_TOLERANCE = 1e-3  # how far a row's sum may be from 1: what float16 answers of a thousand classes reach by rounding


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


class Teacher(Protocol):
    """Anything that can be asked about a batch of images, from several threads at once."""

    @property
    def config(self) -> TeacherConfig:
        """Name, version, class count, limits and prices."""

    def prepare(self, image_size: int) -> Readiness:
        """Look at the model before anything is asked; called again at the end, to see that it is still the same.

        Raises:
            TeacherUnavailable: not reached.
            TeacherError, AccessDenied, ConfigError: it cannot be asked about square RGB images of this side.
        """

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        """One answer per image, in the config's `output` form; anything that numpy can read as (N, ...).

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

    @classmethod
    def of(cls, config: TeacherConfig, preprocessing: str) -> TeacherIdentity:
        """The identity of `config`'s teacher when it is shown images prepared as `preprocessing` says."""
        return cls(
            name=config.name, version=config.version, classes=config.classes, output=config.output, preprocessing=preprocessing,
            prompts=config.prompts)

    @classmethod
    def of_source(cls, source: Mapping[str, Any]) -> TeacherIdentity:
        """The identity that a distillation set's index names."""
        fields = {field: source[field] for field in ("name", "version", "classes", "output", "preprocessing")}
        return cls(**fields, prompts=tuple(source["prompts"]))

    @property
    def key(self) -> str:
        """sha256 (hex): the teacher's folder in the ledger."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class AnswerForm:
    """How one image's answer is kept: the array's shape and numpy's name of its type."""

    shape: tuple[int, ...]
    dtype: str = "float16"

    @classmethod
    def of(cls, identity: TeacherIdentity) -> AnswerForm:
        """Class probabilities (C,)."""
        return cls((identity.classes,))

    @property
    def bytes_per_image(self) -> int:
        """Of one answer."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class MlflowTeacher:
    """A pyfunc model loaded into this process; loading waits for `prepare`, since it costs seconds. One question at a time."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self._predict: Callable[[NDArray[np.uint8]], Any] | None = None
        self._served_version = ""
        self._asked = threading.Lock()  # a pyfunc model promises nothing about threads

    def prepare(self, image_size: int) -> Readiness:
        """Load the model.

        Raises:
            TeacherError: it cannot be loaded.
            TeacherUnavailable: it is on an MLflow server that was not reached.
        """
        del image_size  # a pyfunc model says too little about images to check it
        with self._asked:
            if self._predict is None:
                from fedhelp_core.tracking import load_pyfunc  # MLflow takes seconds to import

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


def open_teacher(config: TeacherConfig) -> Teacher:
    """The client for `config.kind`; nothing is contacted or loaded before it is prepared."""
    if config.kind == "mlflow":
        return MlflowTeacher(config)
    from fedhelp_core.softlabels.openinference import OpenInferenceTeacher

    return OpenInferenceTeacher(config)


def changed_version(name: str, version: str, before: str, now: str) -> TeacherError:
    """What to say where a teacher's model was exchanged under the same `version`."""
    return TeacherError(
        f"teacher {name!r} version {version!r}: the server's model was version {before} when it was first asked, now it is {now};"
        " nothing of the new one was recorded: give it another `version` in public_set.teachers, or put the old one back")


def checked_answers(answer: Any, teacher: TeacherConfig, form: AnswerForm, n: int) -> NDArray[Any]:
    """`answer` to `n` images as it is recorded: (n, *form.shape) of form.dtype.

    Raises:
        TeacherError: it is not what the form and the teacher's config promise.
    """
    return checked_probabilities(answer, teacher, n).astype(form.dtype)


def check_recorded(answers: NDArray[Any]) -> None:
    """ValueError where answers read back are not what `checked_answers` let through."""
    rows = answers.astype(np.float64)
    # float16 has moved each row's sum by up to 2^-11 of itself on top of what was tolerated when it was recorded
    if not np.isfinite(rows).all() or (rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > 2 * SUM_TOLERANCE).any():
        raise ValueError("rows that are not probabilities")


def checked_probabilities(answer: Any, teacher: TeacherConfig, n: int) -> NDArray[np.float32]:
    """`answer` as probabilities (n, C) float32, softmaxed first where the teacher gives logits.

    Raises:
        TeacherError: wrong shape or class count, not numbers, not finite, negative, or rows that do not sum to 1.
    """
    rows_NC = _as_numbers(answer, teacher)
    if rows_NC.ndim != 2 or rows_NC.shape[0] != n:
        raise _unusable(teacher, f"{n} rows of {teacher.classes} {teacher.output}", f"an array of shape {rows_NC.shape}")
    if rows_NC.shape[1] != teacher.classes:
        raise _unusable(teacher, f"{teacher.classes} classes", f"{rows_NC.shape[1]}; correct `classes` in public_set.teachers")
    if not np.isfinite(rows_NC).all():
        row = int(np.argmin(np.isfinite(rows_NC).all(axis=1)))
        raise _unusable(teacher, "finite numbers", f"NaN or infinity in row {row}")
    if teacher.output == "logits":
        rows_NC = _softmax(rows_NC)
    _check_rows(rows_NC, teacher)
    return rows_NC.astype(np.float32)


def _as_numbers(answer: Any, teacher: TeacherConfig) -> NDArray[np.float64]:
    try:
        array = np.asarray(answer)
    except (ValueError, TypeError) as e:
        raise _unusable(teacher, "an array of numbers", f"{type(answer).__name__} that is none ({e})") from e
    if array.dtype.kind not in "fiu":
        raise _unusable(teacher, "an array of numbers", f"{type(answer).__name__} of {array.dtype}")
    return array.astype(np.float64)


def _check_rows(rows_NC: NDArray[np.float64], teacher: TeacherConfig) -> None:
    if (rows_NC < 0).any():
        row = int(np.argmax((rows_NC < 0).any(axis=1)))
        raise _unusable(teacher, "probabilities", f"{rows_NC[row].min():.4g} in row {row}; are these logits (output: logits)?")
    distance_N = np.abs(rows_NC.sum(axis=1) - 1)
    if (distance_N > SUM_TOLERANCE).any():
        row = int(np.argmax(distance_N))
        raise _unusable(teacher, "rows that sum to 1", f"{rows_NC[row].sum():.4g} in row {row}; are these logits (output: logits)?")


def _softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    softmaxed: NDArray[np.float64] = exponents_NC / exponents_NC.sum(axis=1, keepdims=True)
    return softmaxed


def _unusable(teacher: TeacherConfig, expected: str, got: str) -> TeacherError:
    return TeacherError(f"teacher {teacher.name!r} (version {teacher.version}): expected {expected}, got {got}")
