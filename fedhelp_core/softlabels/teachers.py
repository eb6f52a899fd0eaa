"""Teachers: foundation models behind an API that say, once per public image, which classes they see (q of Eq 2).

`prefetch` opens them with `open_teacher` and passes every answer through `checked_probabilities` before it is recorded.
A new kind is one class with `config` and `ask`, and one line in `_KINDS`. Shapes: N images, H height, W width, C the
teacher's classes (C_pub).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config import TeacherConfig
from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher

SUM_TOLERANCE = 1e-3  # how far a row's sum may be from 1: what float16 answers of a thousand classes reach by rounding


class Teacher(Protocol):
    """Anything that can be asked about a batch of images."""

    @property
    def config(self) -> TeacherConfig:
        """Name, version, class count and batch size."""

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        """One answer row per image, in the config's `output` form; anything that numpy can read as (N, C).

        `request_id` is the same whenever the same images are asked, so that a server that remembers ids can answer a
        repeated request without counting it again.

        Raises:
            TeacherUnavailable: not reached or overloaded; the same call may work later.
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

    @classmethod
    def of(cls, config: TeacherConfig, preprocessing: str) -> TeacherIdentity:
        """The identity of `config`'s teacher when it is shown images prepared as `preprocessing` says."""
        return cls(name=config.name, version=config.version, classes=config.classes, output=config.output, preprocessing=preprocessing)

    @property
    def key(self) -> str:
        """sha256 (hex): the teacher's folder in the ledger."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class MlflowTeacher:
    """A pyfunc model loaded into this process; loading waits for the first question, since it costs seconds."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self._predict: Callable[[NDArray[np.uint8]], Any] | None = None

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        """The model's `predict` of the batch.

        Raises:
            TeacherError: the model cannot be loaded, or refuses the batch.
        """
        del request_id  # nothing is counted in this process
        if self._predict is None:
            from fedhelp_core.tracking import load_pyfunc  # MLflow takes seconds to import

            self._predict = load_pyfunc(self.config.uri)
        return self._predict(images_NHWC)


_KINDS: dict[str, Callable[[TeacherConfig], Teacher]] = {"mlflow": MlflowTeacher, "openinference": OpenInferenceTeacher}


def open_teacher(config: TeacherConfig) -> Teacher:
    """The client for `config.kind`; nothing is contacted or loaded before the first question."""
    return _KINDS[config.kind](config)


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
