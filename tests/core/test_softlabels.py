"""Every public image is asked about once, whatever happens; only usable answers enter a set, and nobody can change one unnoticed.

Images here are squares of one shade, so that teachers know them by their pixels: shade v is answered with (v/256, 1 - v/256).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from fedhelp_core.config import PublicSetConfig, TeacherConfig
from fedhelp_core.errors import AccessDenied, ConfigError, DataError, NotFound, TeacherError, TeacherUnavailable
from fedhelp_core.softlabels import distillation_set, openinference, public_images
from fedhelp_core.softlabels import prefetch as prefetch_module
from fedhelp_core.softlabels.distillation_set import load_distillation_set, read_index
from fedhelp_core.softlabels.ledger import Ledger, batch_sha
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from fedhelp_core.softlabels.prefetch import PrefetchReport, prefetch
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.teachers import TeacherIdentity, checked_probabilities
from fedhelp_core.store import Store, open_store

SIDE = 8


def teacher_config(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**({"name": "teacher", "uri": "unused", "classes": 2, "batch_size": 2} | changes))


def draw(folder: Path, *shades: int) -> Path:
    """A PNG square per shade."""
    folder.mkdir(parents=True, exist_ok=True)
    for shade in shades:
        Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(folder / f"{shade:03d}.png")
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
        self._then = then

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        assert images_NHWC.shape[1:] == (SIDE, SIDE, 3)
        assert images_NHWC.dtype == np.uint8
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


def run(store: Store, images: Path, *teachers: CountingTeacher | OpenInferenceTeacher, side: int = SIDE) -> PrefetchReport:
    public = PublicSetConfig(images=images, teachers=tuple(teacher.config for teacher in teachers))
    return prefetch(store, public, side, teachers=teachers)


def rows_by_shade(store: Store, sha256: str) -> dict[int, list[float]]:
    loaded = load_distillation_set(store, sha256)
    shades = loaded.images_NCHW[:, 0, 0, 0].tolist()
    return dict(zip(shades, loaded.probabilities_NC.tolist(), strict=True))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "objects"))


class TestExactlyOnce:
    def test_every_image_is_asked_about_once_and_answered_as_the_teacher_said(self, store: Store, tmp_path: Path) -> None:
        teacher = CountingTeacher()
        report = run(store, draw(tmp_path / "public", 0, 64, 128, 192, 255), teacher)
        assert teacher.asked == [0, 64, 128, 192, 255]
        assert [len(request) for request in teacher.requests] == [2, 2, 1]
        assert (report.images, report.asked, report.cached, report.duplicates, report.classes) == (5, 5, 0, 0, 2)
        assert report.teachers["teacher"].requests == 3
        rows = rows_by_shade(store, report.distillation_set_sha256)
        assert rows[64] == [0.25, 0.75]
        assert rows[128] == [0.5, 0.5]
        assert rows[192] == [0.75, 0.25]
        assert len(rows) == 5

    def test_a_second_run_makes_no_request_and_gives_the_same_set(self, store: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 64, 128)
        first = run(store, public, CountingTeacher())
        objects = store.list("softlabels/")
        teacher = CountingTeacher()
        second = run(store, public, teacher)
        assert teacher.requests == []
        assert (second.asked, second.cached, second.teachers["teacher"].requests) == (0, 3, 0)
        assert second.distillation_set_sha256 == first.distillation_set_sha256
        assert store.list("softlabels/") == objects

    @pytest.mark.parametrize("batches", [0, 1, 2])
    def test_a_killed_run_goes_on_with_the_images_it_never_asked_about(self, store: Store, tmp_path: Path, batches: int) -> None:
        public = draw(tmp_path / "public", 0, 50, 100, 150, 200)
        before = CountingTeacher(then=killed_at(batches))
        with pytest.raises(Killed):
            run(store, public, before)
        after = CountingTeacher()
        report = run(store, public, after)
        assert len(before.asked) == 2 * batches
        assert sorted(before.asked + after.asked) == [0, 50, 100, 150, 200]
        assert (report.asked, report.cached) == (5 - 2 * batches, 2 * batches)
        undisturbed = run(open_store(str(tmp_path / "other")), public, CountingTeacher())
        assert report.distillation_set_sha256 == undisturbed.distillation_set_sha256

    def test_an_overlapping_folder_asks_about_its_new_images_only(self, local: Store, tmp_path: Path) -> None:
        run(local, draw(tmp_path / "one", 0, 50, 100), CountingTeacher())
        teacher = CountingTeacher()
        report = run(local, draw(tmp_path / "two", 50, 100, 150, 200), teacher)
        assert teacher.asked == [150, 200]
        assert (report.asked, report.cached) == (2, 2)
        assert sorted(rows_by_shade(local, report.distillation_set_sha256)) == [50, 100, 150, 200]

    def test_renamed_moved_and_reordered_images_are_known(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100)
        first = run(local, public, CountingTeacher())
        (public / "deep" / "er").mkdir(parents=True)
        (public / "000.png").rename(public / "zzz.PNG")
        (public / "100.png").rename(public / "deep" / "er" / "a.png")
        teacher = CountingTeacher()
        assert run(local, public, teacher).distillation_set_sha256 == first.distillation_set_sha256
        assert teacher.requests == []

    def test_a_copied_image_is_asked_about_once_and_counted(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        shutil.copy(public / "050.png", public / "copy.png")
        shutil.copy(public / "050.png", public / "another.png")
        teacher = CountingTeacher()
        report = run(local, public, teacher)
        assert teacher.asked == [0, 50]
        assert (report.images, report.duplicates) == (2, 2)

    @pytest.mark.parametrize("change", [{"version": "2"}, {"name": "successor"}, {"output": "logits"}, {"version": "2", "classes": 3}])
    def test_another_teacher_is_asked_anew(self, local: Store, tmp_path: Path, change: dict[str, Any]) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        three = change.get("classes") == 3
        teacher = CountingTeacher(teacher_config(**change), then=lambda _, answer: np.pad(answer, ((0, 0), (0, 1))) if three else answer)
        run(local, public, teacher)
        assert teacher.asked == [0, 50]

    @pytest.mark.parametrize("change", [{"uri": "models:/moved/7"}, {"weight": 5.0}, {"batch_size": 1}, {"kind": "openinference"}])
    def test_the_same_teacher_elsewhere_is_not_asked_again(self, local: Store, tmp_path: Path, change: dict[str, Any]) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        teacher = CountingTeacher(teacher_config(**change))
        run(local, public, teacher)
        assert teacher.requests == []

    def test_another_image_size_is_asked_anew(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        seen: list[tuple[int, ...]] = []

        class AnySize(CountingTeacher):
            def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
                seen.append(images_NHWC.shape)
                return answer_to(images_NHWC)

        run(local, public, AnySize())
        run(local, public, AnySize(), side=16)
        assert seen == [(2, SIDE, SIDE, 3), (2, 16, 16, 3)]

    def test_two_prefetches_at_once_end_with_the_same_set(self, open_again: Callable[[], Store], tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100)
        both_ask = threading.Barrier(2)

        def disagreeing(row: list[float]) -> CountingTeacher:
            def then(number: int, answer: Any) -> Any:
                if number == 0:
                    both_ask.wait(20)
                return [row] * len(answer)

            return CountingTeacher(then=then)

        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(run, open_again(), public, disagreeing(row)) for row in ([0.25, 0.75], [0.75, 0.25])]
            one, other = (future.result() for future in running)
        assert one.distillation_set_sha256 == other.distillation_set_sha256
        store = open_again()
        assert len(store.list("softlabels/ledger/")) == 2  # batches of two and of one: of each, the first record counts
        rows = rows_by_shade(store, one.distillation_set_sha256)
        assert all(row in ([0.25, 0.75], [0.75, 0.25]) for row in rows.values())
        late = CountingTeacher()
        assert run(store, public, late).distillation_set_sha256 == one.distillation_set_sha256
        assert late.requests == []

    def test_of_two_answers_about_an_image_the_one_in_the_first_name_counts_always(self, local: Store) -> None:
        one, other = "11" * 32, "22" * 32
        ledger = Ledger(local, TeacherIdentity.of(teacher_config(), "as it is"))
        rows = {batch_sha([one]): [0.25, 0.75], batch_sha([one, other]): [0.75, 0.25]}  # asked by two prefetches of overlapping folders
        ledger.record([one], np.array([rows[batch_sha([one])]], np.float32))
        ledger.record([one, other], np.array([rows[batch_sha([one, other])]] * 2, np.float32))
        assert ledger.answers()[one].tolist() == rows[min(rows)]
        assert ledger.answers()[other].tolist() == [0.75, 0.25]

    def test_a_request_is_named_by_its_images_whoever_asks(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        teacher = CountingTeacher()
        run(local, public, teacher)
        hashes = read_public_images(public, SIDE).hashes
        assert teacher.ids == [batch_sha(hashes)] == [batch_sha(hashes[::-1])]
        assert batch_sha(hashes[:1]) != batch_sha(hashes)

    def test_an_answer_that_cannot_be_used_is_not_recorded_and_those_before_it_are(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100, 150)
        broken = CountingTeacher(then=lambda number, answer: answer * 2 if number == 1 else answer)
        with pytest.raises(TeacherError, match="rows that sum to 1"):
            run(local, public, broken)
        assert len(local.list("softlabels/ledger/")) == 1
        repaired = CountingTeacher()
        run(local, public, repaired)
        assert repaired.asked == sorted(broken.requests[1])

    def test_a_busy_teacher_is_asked_the_same_again(self, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prefetch_module, "RETRY_PAUSES_S", (0.0, 0.0))
        attempts: list[str] = []

        class Busy(CountingTeacher):
            def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
                attempts.append(request_id)
                if len(attempts) < 3:
                    raise TeacherUnavailable("busy")
                return super().ask(images_NHWC, request_id=request_id)

        report = run(local, draw(tmp_path / "public", 0, 50), Busy())
        assert len(attempts) == 3
        assert len(set(attempts)) == 1
        assert (report.asked, report.teachers["teacher"].requests) == (2, 1)

    def test_a_teacher_that_stays_away_ends_prefetch_and_keeps_what_it_answered(
        self, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(prefetch_module, "RETRY_PAUSES_S", (0.0, 0.0))
        public = draw(tmp_path / "public", 0, 50, 100)

        def gone(number: int, answer: Any) -> Any:
            if number == 1:
                raise TeacherUnavailable("gone")
            return answer

        before, after = CountingTeacher(then=gone), CountingTeacher()
        with pytest.raises(TeacherUnavailable, match="gone"):
            run(local, public, before)
        run(local, public, after)
        assert len(after.asked) == 1
        assert sorted(before.asked + after.asked) == [0, 50, 100]

    def test_progress_is_told_after_every_request(self, local: Store, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        teacher = CountingTeacher()
        public = PublicSetConfig(images=draw(tmp_path / "public", 0, 50, 100), teachers=(teacher.config,))
        prefetch(local, public, SIDE, teachers=[teacher], progress=lambda *what: told.append(what))
        assert told == [("teacher", 2, 3), ("teacher", 3, 3)]

    def test_another_class_count_under_the_same_version_is_refused_before_asking(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        teacher = CountingTeacher(teacher_config(classes=3))
        with pytest.raises(ConfigError, match=r"config says 3 classes, but it answered with 2 before.*another version"):
            run(local, public, teacher)
        assert teacher.requests == []


class TestMixOfTeachers:
    def test_answers_are_mixed_by_weight_and_the_weights_are_shares(self, local: Store, tmp_path: Path) -> None:
        one = CountingTeacher(teacher_config(name="one", weight=1), then=lambda _, answer: [[1, 0]] * len(answer))
        other = CountingTeacher(teacher_config(name="other", weight=3, batch_size=3), then=lambda _, answer: [[0.5, 0.5]] * len(answer))
        report = run(local, draw(tmp_path / "public", 0, 50, 100), one, other)
        rows = rows_by_shade(local, report.distillation_set_sha256)
        assert set(map(tuple, rows.values())) == {(0.625, 0.375)}  # 1/4 · (1, 0) + 3/4 · (1/2, 1/2)
        assert (report.asked, report.teachers["one"].requests, report.teachers["other"].requests) == (6, 2, 1)
        shares = {teacher.name: teacher.share for teacher in read_index(local, report.distillation_set_sha256).teachers}
        assert shares == {"one": 0.25, "other": 0.75}

    def test_other_weights_make_another_set_without_asking(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        names = ("one", "other")
        first = run(local, public, *[CountingTeacher(teacher_config(name=name)) for name in names])
        again = [CountingTeacher(teacher_config(name=name, weight=weight)) for name, weight in zip(names, (1, 4), strict=True)]
        second = run(local, public, *again)
        assert [teacher.requests for teacher in again] == [[], []]
        assert second.distillation_set_sha256 != first.distillation_set_sha256

    def test_an_added_teacher_is_the_only_one_asked(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher(teacher_config(name="one")))
        one, other = CountingTeacher(teacher_config(name="one")), CountingTeacher(teacher_config(name="other"))
        run(local, public, one, other)
        assert (one.asked, other.asked) == ([], [0, 50])

    @pytest.mark.parametrize(("changes", "words"), [
        ({"name": "one"}, "every teacher needs its own name, got one, one"),
        ({"name": "other", "classes": 3}, "same number of classes, got one: 2, other: 3"),
    ])
    def test_teachers_that_cannot_be_mixed_are_refused(self, local: Store, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        teachers = [CountingTeacher(teacher_config(name="one")), CountingTeacher(teacher_config(**changes))]
        with pytest.raises(ConfigError, match=words):
            run(local, draw(tmp_path / "public", 0), *teachers)
        assert teachers[0].requests == []


BAD_ANSWERS: dict[str, tuple[Any, str, tuple[str, ...]]] = {  # answer to two images, output, words
    "a row too few": ([[0.5, 0.5, 0]], "probabilities", ("2 rows of 3 probabilities", "shape (1, 3)")),
    "a row too many": (np.full((3, 3), 1 / 3), "logits", ("2 rows of 3 logits", "shape (3, 3)")),
    "no rows": (np.zeros((0, 3)), "probabilities", ("2 rows of 3", "shape (0, 3)")),
    "one dimension": ([0.5, 0.5], "probabilities", ("2 rows of 3", "shape (2,)")),
    "three dimensions": (np.zeros((2, 3, 1)), "probabilities", ("2 rows of 3", "shape (2, 3, 1)")),
    "a number": (0.5, "probabilities", ("2 rows of 3", "shape ()")),
    "too few classes": ([[0.5, 0.5]] * 2, "probabilities", ("expected 3 classes", "got 2", "correct `classes`")),
    "too many classes": ([[0.25] * 4] * 2, "probabilities", ("expected 3 classes", "got 4", "correct `classes`")),
    "NaN": ([[1, 0, 0], [np.nan, 1, 0]], "probabilities", ("expected finite numbers", "NaN or infinity in row 1")),
    "infinity": ([[np.inf, 0, 0], [1, 0, 0]], "logits", ("expected finite numbers", "NaN or infinity in row 0")),
    "nothing": (None, "probabilities", ("expected an array of numbers", "NoneType")),
    "words": ([["nevus"] * 3] * 2, "probabilities", ("expected an array of numbers", "list of <U5")),
    "numbers as words": ([["1", "0", "0"]] * 2, "probabilities", ("expected an array of numbers", "<U1")),
    "ragged rows": ([[1, 0, 0], [1, 0]], "probabilities", ("expected an array of numbers", "list that is none")),
    "a mapping": ({"predictions": [[1, 0, 0]] * 2}, "probabilities", ("expected an array of numbers", "dict of object")),
    "truth values": ([[True, False, False]] * 2, "probabilities", ("expected an array of numbers", "bool")),
    "complex numbers": (np.zeros((2, 3), complex), "probabilities", ("expected an array of numbers", "complex128")),
    "holes": ([[1, None, 0]] * 2, "probabilities", ("expected an array of numbers", "object")),
    "negative": ([[1, 0, 0], [1.5, -0.5, 0]], "probabilities", ("expected probabilities", "-0.5 in row 1", "output: logits")),
    "logits by mistake": ([[3, 2, 1], [1, 0, 0]], "probabilities", ("rows that sum to 1", "6 in row 0", "output: logits")),
    "sum too small": ([[1, 0, 0], [0.9, 0.098, 0]], "probabilities", ("rows that sum to 1", "0.998 in row 1")),
    "all zero": ([[0, 0, 0]] * 2, "probabilities", ("rows that sum to 1", "0 in row 0")),
}

GOOD_ANSWERS: dict[str, tuple[Any, str, list[list[float]]]] = {
    "lists": ([[0.25, 0.75], [1, 0]], "probabilities", [[0.25, 0.75], [1, 0]]),
    "whole numbers": (np.array([[0, 1], [1, 0]]), "probabilities", [[0, 1], [1, 0]]),
    "half precision": (np.array([[0.25, 0.75]] * 2, np.float16), "probabilities", [[0.25, 0.75]] * 2),
    "a sum within tolerance": ([[0.5, 0.4995]] * 2, "probabilities", [[0.5, 0.4995]] * 2),
    "logits": ([[0, np.log(3)], [7, 7]], "logits", [[0.25, 0.75], [0.5, 0.5]]),
    "huge logits": ([[1e4, 0], [-1e4, -1e4]], "logits", [[1, 0], [0.5, 0.5]]),
}


class TestAnswers:
    @pytest.mark.parametrize(("answer", "output", "words"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
    def test_a_bad_answer_is_refused_with_what_was_expected_and_got(self, answer: Any, output: str, words: tuple[str, ...]) -> None:
        with pytest.raises(TeacherError) as caught:
            checked_probabilities(answer, teacher_config(classes=3, version="7", output=output), 2)
        assert "teacher 'teacher' (version 7): expected " in str(caught.value)
        assert [word for word in words if word not in str(caught.value)] == []

    @pytest.mark.parametrize(("answer", "output", "expected"), GOOD_ANSWERS.values(), ids=GOOD_ANSWERS.keys())
    def test_a_good_answer_becomes_float32_probabilities(self, answer: Any, output: str, expected: list[list[float]]) -> None:
        found = checked_probabilities(answer, teacher_config(output=output), 2)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-7)

    def test_a_data_frame_is_an_array_of_numbers(self) -> None:
        pandas = pytest.importorskip("pandas")  # what MLflow's scikit-learn models answer with
        found = checked_probabilities(pandas.DataFrame({"nevus": [0.25], "melanoma": [0.75]}), teacher_config(), 1)
        assert found.tolist() == [[0.25, 0.75]]


def forged(tensors: dict[str, NDArray[Any]]) -> Callable[[bytes], bytes]:
    return lambda body: save({**load(body), **tensors})


DAMAGED_BATCHES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda body: body[:-3], "is not a safetensors file"),
    "empty": (lambda _: b"", "is not a safetensors file"),
    "something else": (lambda _: b"<html>no such bucket</html>", "is not a safetensors file"),
    "other names": (
        lambda body: save({"answers": load(body)["probabilities"]}), r"expected the arrays \['images', 'probabilities'\], got \['answers'\]"),
    "another dtype": (forged({"probabilities": np.full((2, 2), 0.5, np.float32)}), "expected probabilities as float16"),
    "other classes": (forged({"probabilities": np.full((2, 3), 1 / 3, np.float16)}), r"shape \(None, 2\), got float16 of shape \(2, 3\)"),
    "fewer answers": (forged({"probabilities": np.full((1, 2), 0.5, np.float16)}), "2 images but 1 answers"),
    "other images": (forged({"images": np.zeros((2, 32), np.uint8)}), "the images in it are not those of its name"),
    "no probabilities": (forged({"probabilities": np.full((2, 2), 0.75, np.float16)}), "rows that are not probabilities"),
    "negative": (forged({"probabilities": np.array([[1.5, -0.5]] * 2, np.float16)}), "rows that are not probabilities"),
    "NaN": (forged({"probabilities": np.full((2, 2), np.nan, np.float16)}), "rows that are not probabilities"),
}


def spoil(store: Store, key: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object behind the store's back."""
    body = change(store.get(key))
    store.delete(key)
    store.put(key, body)


class TestDamagedLedger:
    @pytest.mark.parametrize(("change", "words"), DAMAGED_BATCHES.values(), ids=DAMAGED_BATCHES.keys())
    def test_a_damaged_batch_is_named_and_never_used(self, local: Store, tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        (key,) = local.list("softlabels/ledger/")
        spoil(local, key, change)
        with pytest.raises(TeacherError, match=rf"{key}: .*{words}.*delete it to ask again"):
            run(local, public, CountingTeacher())

    def test_a_deleted_batch_is_asked_again_alone(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100)
        before, after = CountingTeacher(), CountingTeacher()
        first = run(local, public, before)
        hashes = read_public_images(public, SIDE).hashes
        (key,) = [key for key in local.list("softlabels/ledger/") if batch_sha(hashes[2:]) in key]
        local.delete(key)
        assert run(local, public, after).distillation_set_sha256 == first.distillation_set_sha256
        assert after.requests == before.requests[1:]

    def test_a_batch_under_another_name_is_refused(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        (key,) = local.list("softlabels/ledger/")
        local.put(key.rpartition("/")[0] + "/" + "0" * 64 + ".safetensors", local.get(key))
        with pytest.raises(TeacherError, match="not those of its name"):
            run(local, public, CountingTeacher())

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff"])
    def test_a_damaged_card_is_named(self, local: Store, tmp_path: Path, body: bytes) -> None:
        public = draw(tmp_path / "public", 0)
        run(local, public, CountingTeacher())
        (card,) = local.list("softlabels/teachers/")
        local.put(card, body)
        with pytest.raises(TeacherError, match=f"{card}: .*delete it to go on"):
            run(local, public, CountingTeacher())


def flip_last_byte(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


class TestDistillationSet:
    @pytest.fixture
    def written(self, local: Store, tmp_path: Path) -> str:
        return run(local, draw(tmp_path / "public", 0, 64, 128), CountingTeacher()).distillation_set_sha256

    def test_it_holds_images_and_answers_in_the_order_of_the_images_hashes(self, local: Store, written: str, tmp_path: Path) -> None:
        loaded = load_distillation_set(local, written)
        images = read_public_images(tmp_path / "public", SIDE)
        assert str(loaded.images_NCHW.dtype) == "torch.uint8"
        assert tuple(loaded.images_NCHW.shape) == (3, 3, SIDE, SIDE)
        assert loaded.images_NCHW.permute(0, 2, 3, 1).numpy().tobytes() == images.pixels([0, 1, 2]).tobytes()
        np.testing.assert_array_equal(loaded.probabilities_NC.numpy(), answer_to(images.pixels([0, 1, 2])).astype(np.float32))
        assert (loaded.classes, loaded.sha256) == (2, written)

    def test_a_set_of_several_shards_holds_the_same(
        self, local: Store, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(distillation_set, "IMAGES_PER_SHARD", 2)
        sharded = run(local, tmp_path / "public", CountingTeacher()).distillation_set_sha256
        assert [shard.images for shard in read_index(local, sharded).shards] == [2, 1]
        one, other = load_distillation_set(local, written), load_distillation_set(local, sharded)
        assert one.images_NCHW.equal(other.images_NCHW)
        assert one.probabilities_NC.equal(other.probabilities_NC)

    @pytest.mark.parametrize("name", ["index.json", "images-00000.safetensors", "probabilities-00000.safetensors"])
    @pytest.mark.parametrize("change", [flip_last_byte, lambda body: body[:-1], lambda _: b""], ids=["flipped bit", "cut off", "empty"])
    def test_any_changed_file_is_noticed(self, local: Store, written: str, name: str, change: Callable[[bytes], bytes]) -> None:
        spoil(local, f"softlabels/{written}/{name}", change)
        with pytest.raises(DataError, match=rf"softlabels/{written}/{name}: has sha256 .*damaged or forged.*run soft_label_prefetch again"):
            load_distillation_set(local, written)

    def test_answers_swapped_with_another_sets_are_noticed(self, local: Store, written: str, tmp_path: Path) -> None:
        other = run(local, draw(tmp_path / "other", 10, 20, 30), CountingTeacher()).distillation_set_sha256
        name = "probabilities-00000.safetensors"
        spoil(local, f"softlabels/{written}/{name}", lambda _: local.get(f"softlabels/{other}/{name}"))
        with pytest.raises(DataError, match="has sha256"):
            load_distillation_set(local, written)

    @pytest.mark.parametrize("name", ["index.json", "images-00000.safetensors", "probabilities-00000.safetensors"])
    def test_a_missing_file_is_not_found(self, local: Store, written: str, name: str) -> None:
        local.delete(f"softlabels/{written}/{name}")
        with pytest.raises(NotFound, match=written):
            load_distillation_set(local, written)

    def test_a_set_that_was_never_written_says_what_to_run(self, local: Store) -> None:
        with pytest.raises(NotFound, match=f"distillation set {'0' * 64} is not in .*; run soft_label_prefetch again"):
            load_distillation_set(local, "0" * 64)

    @pytest.mark.parametrize(("change", "words"), [
        ({"images": 4}, "promises 4 images, but its shards hold 3"),
        ({"classes": 1}, "is not an index"),
        ({"classes": "2"}, "is not an index"),
        ({"image_size": 10**6}, "is not an index"),
        ({"shards": []}, "is not an index"),
        ({"surprise": 1}, "is not an index"),
        ({"format": "fedhelp-distillation-set/2"}, "is not an index"),
        ({"image_size": 16}, r"holds torch.uint8 of shape \(3, 3, 8, 8\), expected uint8 of shape \(3, 3, 16, 16\)"),
        ({"classes": 3}, "expected probabilities as float16"),
    ])
    def test_an_index_that_is_true_to_its_name_but_not_to_its_files_is_refused(
        self, local: Store, written: str, change: dict[str, Any], words: str,
    ) -> None:
        body = json.dumps(json.loads(local.get(f"softlabels/{written}/index.json")) | change).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        for key in local.list(f"softlabels/{written}/"):
            local.put(key.replace(written, sha256), body if key.endswith(".json") else local.get(key))
        with pytest.raises(DataError, match=words):
            load_distillation_set(local, sha256)

    def test_another_class_count_than_the_configs_is_refused(self, local: Store, written: str) -> None:
        assert load_distillation_set(local, written, classes=2).classes == 2
        with pytest.raises(ConfigError, match="recorded with 2 classes, config says 8"):
            load_distillation_set(local, written, classes=8)

    def test_copies_of_a_bucket_are_kept_and_checked(self, s3_endpoint: str, tmp_path: Path) -> None:
        store = open_store(f"s3://federation/{os.getpid()}-cache", endpoint_url=s3_endpoint)
        written = run(store, draw(tmp_path / "public", 0, 64), CountingTeacher()).distillation_set_sha256
        cache, key = tmp_path / "cache", f"softlabels/{written}/images-00000.safetensors"
        first = load_distillation_set(store, written, cache)
        store.delete(key)
        assert load_distillation_set(store, written, cache).images_NCHW.equal(first.images_NCHW)
        (cache / key).write_bytes(flip_last_byte((cache / key).read_bytes()))
        with pytest.raises(NotFound):  # the copy is no good, so the bucket is asked
            load_distillation_set(store, written, cache)


class TestPublicImages:
    def test_an_empty_folder_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / ".hidden.png").write_bytes(b"left out")
        with pytest.raises(DataError, match=r"at least one public image \(.jpeg, .jpg, .png\) expected, found none; correct public_set.images"):
            read_public_images(tmp_path, SIDE)

    def test_a_missing_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere: no such folder of public images"):
            read_public_images(tmp_path / "nowhere", SIDE)

    def test_every_image_that_cannot_be_read_is_listed(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for name in ("a.png", "b.jpg", "good.png"):
            Image.fromarray(noise).save(tmp_path / name)
        for name in ("a.png", "b.jpg"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
        (tmp_path / "c.png").write_bytes(b"")
        (tmp_path / "d.jpeg").write_text("<html>moved</html>")
        Image.fromarray(noise).save(tmp_path / "e.gif")
        (tmp_path / "e.gif").rename(tmp_path / "e.png")
        with pytest.raises(DataError) as caught:
            read_public_images(tmp_path, SIDE)
        assert [Path(problem.partition(":")[0]).name for problem in caught.value.problems] == ["a.png", "b.jpg", "c.png", "d.jpeg", "e.png"]
        assert all("cannot be read as an image" in problem and "replace or remove it" in problem for problem in caught.value.problems)

    def test_a_tag_of_another_type_than_its_name_promises_is_a_problem_and_no_crash(self, tmp_path: Path) -> None:
        exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + b"".join([
            b"\x00\x02",  # two tags: ImageLength as text, and an orientation that makes Pillow write the tags anew
            b"\x01\x01\x00\x02\x00\x00\x00\x05\x00\x00\x00\x26", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00", b"\x00" * 4, b"tall\x00"])
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.jpg", exif=exif)
        with pytest.raises(DataError, match=r"a.jpg: cannot be read as an image"):
            read_public_images(tmp_path, SIDE)

    def test_16_bit_grey_keeps_its_upper_8_bits(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((SIDE, SIDE), 0x80FF, np.uint16)).save(tmp_path / "grey.png")
        assert read_public_images(tmp_path, SIDE).pixels([0]).tolist() == [[[[0x80] * 3] * SIDE] * SIDE]

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
    def test_every_colour_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).convert(mode).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
        pixels = read_public_images(tmp_path, SIDE).pixels([0])
        assert pixels.shape == (1, SIDE, SIDE, 3)
        assert pixels.min() >= 254

    def test_the_centre_of_a_wide_image_is_kept(self, tmp_path: Path) -> None:
        wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
        wide[:, SIDE : 2 * SIDE] = 200
        Image.fromarray(wide).save(tmp_path / "wide.png")
        assert (read_public_images(tmp_path, SIDE).pixels([0])[0, :, 2:-2] == 200).all()

    def test_a_photograph_held_upright_is_upright(self, tmp_path: Path) -> None:
        lying = np.zeros((16, 16), np.uint8)
        lying[:8] = 240  # bright above, as the sensor saw it; orientation 6 says: turn it clockwise
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(lying).save(tmp_path / "a.jpg", exif=exif, quality=100)
        pixels = read_public_images(tmp_path, 16).pixels([0])[0]
        assert pixels[:, 12:].min() > 200
        assert pixels[:, :4].max() < 50

    @pytest.mark.parametrize("kept", [2**31, 0], ids=["kept in memory", "decoded again"])
    def test_pixels_are_those_of_the_chosen_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
        monkeypatch.setattr(public_images, "_KEPT_BYTES", kept)
        images = read_public_images(draw(tmp_path, 0, 50, 100), SIDE)
        order = shades_of(images.pixels([0, 1, 2]))
        assert sorted(order) == [0, 50, 100]
        assert shades_of(images.pixels([2, 0])) == [order[2], order[0]]

    def test_an_image_that_changes_while_it_is_used_ends_the_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(public_images, "_KEPT_BYTES", 0)
        images = read_public_images(draw(tmp_path, 0), SIDE)
        Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(tmp_path / "000.png")
        with pytest.raises(DataError, match=r"000.png: changed while it was being used"):
            images.pixels([0])


class InferenceServer:
    """A little Open Inference Protocol server; `answer` makes (status, headers, body) of a request's headers and body."""

    def __init__(self) -> None:
        self.server_metadata: Any = {"name": "little", "extensions": []}
        self.model_metadata: Any = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]}]}
        self.answer: Callable[[Any, bytes], tuple[int, dict[str, str], bytes]] = lambda _, body: json_answer(answer_to(pixels_of(body)))
        self.gets: list[str] = []
        self.posts: list[tuple[Any, bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.gets.append(self.path)
                found = {"/v2": server.server_metadata, "/v2/models/derma": server.model_metadata, "/moved": server.model_metadata}.get(self.path)
                if isinstance(found, tuple):
                    self.reply(*found)
                elif found is None:
                    self.reply(404, {}, b"no such model")
                else:
                    self.reply(200, {}, found if isinstance(found, bytes) else json.dumps(found).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.posts.append((self.headers, body))
                self.reply(*server.answer(self.headers, body))

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Clients that time out or are killed are part of the tests."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v2/models/derma"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def teacher(self, **changes: Any) -> OpenInferenceTeacher:
        return OpenInferenceTeacher(teacher_config(**({"kind": "openinference", "uri": self.url} | changes)))


def json_answer(rows: Any) -> tuple[int, dict[str, str], bytes]:
    rows = np.asarray(rows)
    output = {"name": "scores", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return 200, {"Content-Type": "application/json"}, json.dumps({"model_name": "derma", "outputs": [output]}).encode()


def binary_answer(rows: NDArray[Any], datatype: str, *, said_bytes: int | None = None) -> tuple[int, dict[str, str], bytes]:
    raw = rows.tobytes()
    parameters = {"binary_data_size": len(raw) if said_bytes is None else said_bytes}
    head = json.dumps({"outputs": [{"name": "scores", "datatype": datatype, "shape": list(rows.shape), "parameters": parameters}]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(head))}, head + raw


def output_answer(**changes: Any) -> Callable[[Any, bytes], tuple[int, dict[str, str], bytes]]:
    """A JSON answer whose one output has fields replaced."""
    output = {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 1, 0]} | changes
    return lambda _headers, _body: (200, {}, json.dumps({"outputs": [output]}).encode())


def pixels_of(body: bytes) -> NDArray[np.uint8]:
    asked = json.loads(body)["inputs"][0]
    return np.asarray(asked["data"], np.uint8).reshape(asked["shape"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = InferenceServer()
    yield server
    server.close()


IMAGES = np.stack([np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in (64, 192)])
IMAGES[:, :, :, 2] = 51  # channels differ, so that their place shows; 51 / 255 = 1 / 5


def ask(teacher: OpenInferenceTeacher) -> Any:
    return teacher.ask(IMAGES, request_id="request-7")


class TestOpenInference:
    def test_images_go_as_json_and_the_answer_comes_as_json(self, server: InferenceServer) -> None:
        np.testing.assert_allclose(ask(server.teacher()), [[0.25, 0.75], [0.75, 0.25]])
        ((headers, body),) = server.posts
        request = json.loads(body)
        assert headers["Content-Type"] == "application/json"
        assert request["id"] == "request-7"
        assert [request["inputs"][0][field] for field in ("name", "datatype", "shape")] == ["pixels", "UINT8", [2, SIDE, SIDE, 3]]
        assert pixels_of(body).tobytes() == IMAGES.tobytes()

    @pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
    def test_a_model_of_floats_and_channels_first_gets_what_it_takes(self, server: InferenceServer, datatype: str) -> None:
        server.model_metadata = {"inputs": [{"name": "x", "datatype": datatype, "shape": [-1, 3, SIDE, SIDE]}]}
        server.answer = lambda *_: json_answer([[1, 0], [0, 1]])
        ask(server.teacher())
        asked = json.loads(server.posts[0][1])["inputs"][0]
        assert asked["shape"] == [2, 3, SIDE, SIDE]
        data = np.asarray(asked["data"]).reshape(asked["shape"])
        np.testing.assert_allclose(data[0, 0], 64 / 255, rtol=1e-3)
        np.testing.assert_allclose(data[1, 2], 0.2, rtol=1e-3)

    @pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64), ("INT64", np.int64)])
    def test_images_go_as_bytes_and_the_answer_comes_as_bytes_where_the_server_can(
        self, server: InferenceServer, datatype: str, dtype: type[np.generic],
    ) -> None:
        server.server_metadata = {"extensions": ["classification", "binary_tensor_data"]}
        rows = np.array([[0, 1], [1, 0]], dtype)
        server.answer = lambda *_: binary_answer(rows, datatype)
        assert ask(server.teacher()).tolist() == rows.tolist()
        ((headers, body),) = server.posts
        head = int(headers["Inference-Header-Content-Length"])
        described = json.loads(body[:head])["inputs"][0]
        assert described["parameters"] == {"binary_data_size": IMAGES.nbytes}
        assert "data" not in described
        assert body[head:] == IMAGES.tobytes()

    def test_an_answer_may_be_json_to_bytes_and_bytes_to_json(self, server: InferenceServer) -> None:
        rows = np.array([[0.25, 0.75], [1, 0]], np.float32)
        server.answer = lambda *_: binary_answer(rows, "FP32")
        assert ask(server.teacher()).tolist() == rows.tolist()
        server.server_metadata = {"extensions": ["binary_tensor_data"]}
        server.answer = lambda *_: json_answer(rows)
        assert ask(server.teacher()).tolist() == rows.tolist()

    def test_nested_rows_are_read_too(self, server: InferenceServer) -> None:
        server.answer = output_answer(data=[[0.25, 0.75], [1, 0]])
        assert ask(server.teacher()).tolist() == [[0.25, 0.75], [1, 0]]

    def test_what_the_model_is_like_is_asked_once(self, server: InferenceServer) -> None:
        teacher = server.teacher()
        ask(teacher)
        ask(teacher)
        assert sorted(server.gets) == ["/v2", "/v2/models/derma"]
        assert len(server.posts) == 2

    @pytest.mark.parametrize("ending", ["/", "/infer"])
    def test_the_models_address_may_end_as_people_write_it(self, server: InferenceServer, ending: str) -> None:
        assert ask(server.teacher(uri=server.url + ending)).shape == (2, 2)

    @pytest.mark.parametrize("uri", ["models:/derma/1", "ftp://host/v2/models/derma", "http://host/predict", "http://host:port/v2/models/derma"])
    def test_an_address_that_is_none_is_a_config_error(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="teacher 'teacher'.*" + uri):
            OpenInferenceTeacher(teacher_config(kind="openinference", uri=uri))

    @pytest.mark.parametrize(("metadata", "words"), [
        ({}, "expected metadata with inputs"),
        ({"inputs": []}, "expected metadata with inputs"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", 3, 8, 8]}]}, "expected metadata with inputs"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [Infinity, 3, 8, 8]}]}', "expected metadata with inputs"),
        ({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 1]}]}, "RGB images.*got BYTES"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]}, r"RGB images.*got FP32 of shape \[-1, 1, 8, 8\]"),
        ([1], "expected a JSON object, got list"),
        (b"<html>", "expected JSON, got b'<html>'"),
        (b"[" * 100_000, "expected JSON"),
        ((404, {}, b"no model derma"), "HTTP 404 from .*: no model derma"),
    ])
    def test_a_model_that_is_no_classifier_of_images_is_refused(self, server: InferenceServer, metadata: Any, words: str) -> None:
        server.model_metadata = metadata
        with pytest.raises(TeacherError, match=words):
            ask(server.teacher())
        assert server.posts == []

    def test_a_server_without_a_list_of_extensions_is_sent_json(self, server: InferenceServer) -> None:
        for metadata in ({}, {"extensions": None}, {"extensions": 3}):
            server.server_metadata = metadata
            assert ask(server.teacher()).shape == (2, 2)

    @pytest.mark.parametrize(("status", "error", "words"), [
        (400, TeacherError, "HTTP 400 from .*: the batch is too large"),
        (404, TeacherError, "HTTP 404"),
        (401, AccessDenied, "HTTP 401.*credentials"),
        (403, AccessDenied, "HTTP 403.*credentials"),
        (429, TeacherUnavailable, r"HTTP 429.*\(the batch is too large\); try again later"),
        (500, TeacherUnavailable, "HTTP 500"),
        (503, TeacherUnavailable, "HTTP 503.*try again later"),
    ])
    def test_a_refusal_is_the_error_of_its_kind(self, server: InferenceServer, status: int, error: type[Exception], words: str) -> None:
        server.answer = lambda *_: (status, {}, b"the batch is too large")
        with pytest.raises(error, match=words) as caught:
            ask(server.teacher())
        assert type(caught.value) is error

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirected_question_is_never_taken_as_answered(self, server: InferenceServer, status: int) -> None:
        server.answer = lambda *_: (status, {"Location": "/moved"}, b"")
        server.model_metadata = server.model_metadata | {"outputs": [{"datatype": "FP32", "shape": [2, 2], "data": [1, 0, 1, 0]}]}
        with pytest.raises(TeacherError, match=rf"HTTP {status} .*sends elsewhere, to /moved; give the teacher's own address"):
            ask(server.teacher())
        assert "/moved" not in server.gets

    def test_a_teacher_that_does_not_answer_in_time_is_unavailable(self, server: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openinference, "TIMEOUT_S", 0.2)
        answered = threading.Event()

        def late(_headers: Any, _body: bytes) -> tuple[int, dict[str, str], bytes]:
            answered.wait(10)
            return 200, {}, b"{}"

        server.answer = late
        started = time.monotonic()
        with pytest.raises(TeacherUnavailable, match=r"infer was not reached .*timed out"):
            ask(server.teacher())
        answered.set()
        assert time.monotonic() - started < 5

    def test_a_teacher_that_is_not_there_is_unavailable(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(TeacherUnavailable, match="was not reached"):
            ask(OpenInferenceTeacher(teacher_config(kind="openinference", uri=f"http://127.0.0.1:{port}/v2/models/derma")))

    @pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
                                      b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n{"])
    def test_an_answer_that_breaks_off_is_worth_another_try(self, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def answer() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(said)

            threading.Thread(target=answer, daemon=True).start()
            with pytest.raises(TeacherUnavailable, match=r"was not reached|broke off 499 bytes early"):
                ask(OpenInferenceTeacher(teacher_config(
                    kind="openinference", uri=f"http://127.0.0.1:{listening.getsockname()[1]}/v2/models/derma")))

    def test_an_answer_without_end_is_cut_off(self, server: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openinference, "MAX_ANSWER_BYTES", 1000)
        server.answer = lambda *_: (200, {}, b" " * 1001)
        with pytest.raises(TeacherError, match="expected at most 1000 bytes, got more; lower the teacher's batch_size"):
            ask(server.teacher())

    @pytest.mark.parametrize("answer", [
        lambda *_: (200, {}, b"{}"),
        lambda *_: (200, {}, b'{"outputs": []}'),
        lambda *_: (200, {}, b'{"outputs": {"0": 1}}'),
        output_answer(shape=[3, 2]),
        output_answer(shape=None),
        output_answer(shape=[float("inf"), 2]),
        output_answer(data=["nevus"] * 4),
        output_answer(data=[10**400, 0, 0, 0]),
        output_answer(datatype="BYTES"),
        lambda *_: binary_answer(np.eye(2, dtype=np.float32), "FP64"),
        lambda *_: binary_answer(np.eye(2, dtype=np.float32), "FP32", said_bytes=12),
        output_answer(data=[]),
    ], ids=["nothing", "no outputs", "a mapping", "shape", "no shape", "endless shape", "words", "beyond floats", "datatype", "other bytes",
            "bytes left out", "no data"])
    def test_an_output_that_is_not_the_protocols_is_refused(self, server: InferenceServer, answer: Any) -> None:
        server.answer = answer
        with pytest.raises(TeacherError, match="expected an output with shape, datatype and data"):
            ask(server.teacher())

    @pytest.mark.parametrize(("body", "headers", "words"), [
        (b"", {}, "expected JSON, got b''"),
        (b"null", {}, "expected a JSON object, got NoneType"),
        (b"\xff\xfe", {}, "expected JSON"),
        (b"{}", {"Inference-Header-Content-Length": "many"}, "expected a number as Inference-Header-Content-Length, got 'many'"),
    ])
    def test_an_answer_that_is_no_document_is_refused(self, server: InferenceServer, body: bytes, headers: dict[str, str], words: str) -> None:
        server.answer = lambda *_: (200, headers, body)
        with pytest.raises(TeacherError, match=words):
            ask(server.teacher())


class TestPrefetchFromAServer:
    def test_an_answer_with_holes_is_not_recorded(self, server: InferenceServer, local: Store, tmp_path: Path) -> None:
        server.answer = output_answer(data=[1, 0, None, 0])
        with pytest.raises(TeacherError, match="NaN or infinity in row 1"):
            run(local, draw(tmp_path / "public", 0, 64), server.teacher())
        assert local.list("softlabels/") == []

    def test_a_server_that_recovers_is_asked_every_image_once(
        self, server: InferenceServer, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(prefetch_module, "RETRY_PAUSES_S", (0.0, 0.0))
        answered: list[int] = []

        def sometimes_busy(_headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
            if len(server.posts) % 2:
                return 503, {}, b"starting"
            answered.extend(shades_of(pixels_of(body)))
            return json_answer(answer_to(pixels_of(body)))

        server.answer = sometimes_busy
        report = run(local, draw(tmp_path / "public", 0, 64, 128), server.teacher())
        assert sorted(answered) == [0, 64, 128]
        assert rows_by_shade(local, report.distillation_set_sha256)[64] == [0.25, 0.75]

    def test_a_process_killed_in_the_middle_of_a_request_repeats_only_that_one(self, server: InferenceServer, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 40, 80, 120, 160)
        program = """
import sys
from fedhelp_core.config import PublicSetConfig, TeacherConfig
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.store import open_store
store, images, uri, side = sys.argv[1:]
teacher = TeacherConfig(name="teacher", kind="openinference", uri=uri, classes=2, batch_size=2)
prefetch(open_store(store), PublicSetConfig(images=images, teachers=(teacher,)), int(side))
"""
        process = subprocess.Popen([sys.executable, "-c", program, local.url, str(public), server.url, str(SIDE)])

        def kill_at_the_second(_headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
            if len(server.posts) == 2:
                os.kill(process.pid, signal.SIGKILL)
                process.wait(20)
            return json_answer(answer_to(pixels_of(body)))

        server.answer = kill_at_the_second
        assert process.wait(30) == -signal.SIGKILL
        report = run(local, public, server.teacher())
        requests = [json.loads(body) for _, body in server.posts]
        assert [request["id"] == requests[1]["id"] for request in requests] == [False, True, True, False]  # the same question, the same id
        assert (report.asked, report.cached) == (3, 2)
        asked = [shades_of(pixels_of(body)) for _, body in server.posts]
        assert sorted(shade for request in [asked[0], *asked[2:]] for shade in request) == [0, 40, 80, 120, 160]
