"""Teachers' answers: what is let through, and how it is kept, in the ledger and in a distillation set.

Called by `asking`, `ledger`, `prefetch` and `distillation_set`. Class probabilities are kept as float16 (C,). Masks are kept as
foreground probabilities in steps of 1/255, uint8 (F, S, ...), each image deflated by itself, so that a batch is read without
the others: F = 1 where the teacher answers with one channel, the foreground's, else F = C - 1, its first channel being the
background; of regions F = C. Shapes: N images, C the teacher's classes, F foregrounds, S the side in pixels or voxels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.config.teachers import TeacherConfig
from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.softlabels.tensors import Shape

SUM_TOLERANCE = 1e-3  # how far a sum may be from 1: what float16 answers of a thousand classes reach by rounding
_STEPS = 255
_LEVEL = 6


@dataclass(frozen=True)
class AnswerEncoding:
    """How one image's answer is kept: the array's shape and numpy's name of its type. Of type uint8 are masks."""

    shape: tuple[int, ...]
    dtype: str = "float16"
    each: bool = False
    """Whether probabilities are each by itself, as findings' and regions' are."""

    @classmethod
    def of(cls, identity: TeacherIdentity) -> AnswerEncoding:
        """That of a teacher's answers."""
        if identity.mask:
            foregrounds = identity.classes if identity.each else max(1, identity.classes - 1)
            return cls((foregrounds, *identity.mask), "uint8", identity.each)
        return cls((identity.classes,), each=identity.each)

    @property
    def masks(self) -> bool:
        """Whether answers are masks."""
        return self.dtype == "uint8"

    @property
    def by_itself(self) -> bool:
        """Whether each probability is against its opposite: of masks and findings, not of classes."""
        return self.masks or self.each

    @property
    def bytes_per_image(self) -> int:
        """Of one answer in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def kept(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Probabilities (N, ...) as they are kept."""
        return np.rint(probabilities * _STEPS).astype(np.uint8) if self.masks else probabilities.astype(self.dtype)

    def probabilities(self, kept: NDArray[Any]) -> NDArray[np.float64]:
        """What was kept, as float64."""
        return kept.astype(np.float64) / (_STEPS if self.masks else 1)

    def packed(self, kept: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The arrays that a file holds of answers (N, ...)."""
        if not self.masks:
            return {"answers": kept}
        parts = [zlib.compress(row.tobytes(), _LEVEL) for row in kept]
        return {"answers": np.frombuffer(b"".join(parts), np.uint8), "ends": np.cumsum([len(part) for part in parts], dtype=np.int64)}

    def expected(self, answers: int | None = None, stored: int | None = None) -> dict[str, tuple[str, Shape]]:
        """Type and shape of these arrays for `answers` answers in `stored` bytes; None: any."""
        if not self.masks:
            return {"answers": (self.dtype, (answers, *self.shape))}
        return {"answers": ("uint8", (stored,)), "ends": ("int64", (answers,))}

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Answers (N, ...) from the arrays.

        Raises:
            ValueError: they are not what `packed` made.
        """
        if not self.masks:
            return arrays["answers"]
        starts, ends = bounds(arrays["ends"], len(arrays["answers"]))
        rows = [self.inflated(arrays["answers"][start:end].tobytes()) for start, end in zip(starts, ends, strict=True)]
        return np.stack(rows) if rows else np.empty((0, *self.shape), np.uint8)

    def inflated(self, deflated: bytes) -> NDArray[np.uint8]:
        """One answer from its bytes.

        Raises:
            ValueError: it is none, or of another size.
        """
        reader = zlib.decompressobj()
        try:
            raw = reader.decompress(deflated, self.bytes_per_image + 1)
        except zlib.error as e:
            raise ValueError(f"an answer cannot be inflated ({e})") from e
        if len(raw) != self.bytes_per_image or not reader.eof or reader.unused_data:
            raise ValueError(f"an answer of {self.bytes_per_image} bytes expected, got another size")
        return np.frombuffer(raw, np.uint8).reshape(self.shape)


def bounds(ends: NDArray[np.int64], stored: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each deflated answer begins and ends.

    Raises:
        ValueError: these are not the ends of answers in `stored` bytes.
    """
    starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
    if (ends < starts).any() or (ends[-1] if len(ends) else 0) != stored:
        raise ValueError("answers do not end where it says")
    return starts, ends


def checked_answers(answer: Any, teacher: TeacherConfig, encoding: AnswerEncoding, n: int) -> NDArray[Any]:
    """`answer` to `n` images as it is kept: (n, *encoding.shape) of encoding.dtype.

    Raises:
        TeacherError: it is not what the encoding and the teacher's config promise.
    """
    if encoding.masks:
        return encoding.kept(_checked_masks(answer, teacher, encoding, n))
    return encoding.kept(checked_probabilities(answer, teacher, n, each=encoding.each))


def check_recorded(answers: NDArray[Any], encoding: AnswerEncoding) -> None:
    """ValueError where answers read back are not what `checked_answers` let through."""
    if encoding.masks:
        return  # every byte is a probability
    rows = answers.astype(np.float64)
    if encoding.each:
        if not ((rows >= 0) & (rows <= 1)).all():
            raise ValueError("rows that are not probabilities")
        return
    # float16 has moved each row's sum by up to 2^-11 of itself on top of what was tolerated when it was recorded
    if not np.isfinite(rows).all() or (rows < 0).any() or (np.abs(rows.sum(axis=1) - 1) > 2 * SUM_TOLERANCE).any():
        raise ValueError("rows that are not probabilities")


def checked_probabilities(answer: Any, teacher: TeacherConfig, n: int, *, each: bool = False) -> NDArray[np.float32]:
    """`answer` as probabilities (n, C) float32 that sum to 1, or `each` by itself; made of logits first where the teacher gives these.

    Raises:
        TeacherError: wrong shape or class count, not numbers, not finite, negative, or rows that do not sum to 1.
    """
    rows_NC = _as_numbers(answer, teacher)
    if rows_NC.ndim != 2 or rows_NC.shape[0] != n:
        raise _unusable(teacher, f"{n} rows of {teacher.classes} {teacher.output}", f"an array of shape {rows_NC.shape}")
    if rows_NC.shape[1] != teacher.classes:
        raise _unusable(teacher, f"{teacher.classes} classes", f"{rows_NC.shape[1]}; correct `classes` in public_set.teachers")
    _check_finite(rows_NC, teacher, "row")
    if each:
        return _each_by_itself(rows_NC, teacher, "row").astype(np.float32)
    if teacher.output == "logits":
        rows_NC = _softmax(rows_NC)
    _check_distributions(rows_NC, teacher, "row")
    return rows_NC.astype(np.float32)


def _checked_masks(answer: Any, teacher: TeacherConfig, encoding: AnswerEncoding, n: int) -> NDArray[np.float64]:
    """`answer` as foreground probabilities (n, F, S, ...)."""
    planes_NC = _as_numbers(answer, teacher)
    wanted = (n, teacher.classes, *encoding.shape[1:])
    if planes_NC.shape != wanted:
        what = f"{n} masks of {teacher.classes} {teacher.output} per pixel, an array of shape {wanted}"
        raise _unusable(teacher, what, f"one of shape {planes_NC.shape}; correct `classes` in public_set.teachers, or the model")
    _check_finite(planes_NC, teacher, "image")
    if teacher.classes == 1 or encoding.each:
        return _each_by_itself(planes_NC, teacher, "image")
    if teacher.output == "logits":
        planes_NC = _softmax(planes_NC)
    _check_distributions(planes_NC, teacher, "image")
    return planes_NC[:, 1:].clip(0, 1)


def _each_by_itself(answers: NDArray[np.float64], teacher: TeacherConfig, unit: str) -> NDArray[np.float64]:
    if teacher.output == "logits":
        probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-answers.clip(-500, 500)))
        return probabilities
    _check_range(answers, teacher, unit)
    return answers.clip(0, 1)


def _as_numbers(answer: Any, teacher: TeacherConfig) -> NDArray[np.float64]:
    try:
        array = np.asarray(answer)
    except (ValueError, TypeError) as e:
        raise _unusable(teacher, "an array of numbers", f"{type(answer).__name__} that is none ({e})") from e
    if array.dtype.kind not in "fiu":
        raise _unusable(teacher, "an array of numbers", f"{type(answer).__name__} of {array.dtype}")
    return array.astype(np.float64)


def _check_finite(rows_NC: NDArray[np.float64], teacher: TeacherConfig, unit: str) -> None:
    if not np.isfinite(rows_NC).all():
        row = int(np.argmin(np.isfinite(rows_NC).reshape(len(rows_NC), -1).all(axis=1)))
        raise _unusable(teacher, "finite numbers", f"NaN or infinity in {unit} {row}")


def _check_range(rows_NC: NDArray[np.float64], teacher: TeacherConfig, unit: str) -> None:
    """Probabilities that are each by itself, up to rounding."""
    wrong = (rows_NC < 0) | (rows_NC > 1 + SUM_TOLERANCE)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(rows_NC), -1).any(axis=1)))
        value = rows_NC[row][wrong[row]].flat[0]
        raise _unusable(teacher, "probabilities", f"{value:.4g} in {unit} {row}; are these logits (output: logits)?")


def _check_distributions(rows_NC: NDArray[np.float64], teacher: TeacherConfig, unit: str) -> None:
    """Probabilities that sum to 1 over axis 1."""
    if (rows_NC < 0).any():
        row = int(np.argmax((rows_NC < 0).reshape(len(rows_NC), -1).any(axis=1)))
        raise _unusable(teacher, "probabilities", f"{rows_NC[row].min():.4g} in {unit} {row}; are these logits (output: logits)?")
    sums = rows_NC.sum(axis=1)
    wrong = np.abs(sums - 1) > SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(rows_NC), -1).any(axis=1)))
        value = sums[row][wrong[row]].flat[0]
        what = "rows that sum to 1" if unit == "row" else "classes that sum to 1 in every pixel"
        raise _unusable(teacher, what, f"{value:.4g} in {unit} {row}; are these logits (output: logits)?")


def _softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    softmaxed: NDArray[np.float64] = exponents_NC / exponents_NC.sum(axis=1, keepdims=True)
    return softmaxed


def _unusable(teacher: TeacherConfig, expected: str, got: str) -> TeacherError:
    return TeacherError(f"teacher {teacher.name!r} (version {teacher.version}): expected {expected}, got {got}")
