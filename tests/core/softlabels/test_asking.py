"""Several questions at once: as many as allowed, as often as allowed, and none more after an error. Shards ask for their own images."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.errors import TeacherError
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import CountingTeacher, draw, run, teacher_config

SHADES = tuple(range(0, 240, 10))  # 24 images, 12 requests of two


def test_as_many_questions_are_in_flight_as_the_config_allows_and_never_more(local: Store, tmp_path: Path) -> None:
    in_flight, most = 0, 0
    lock, together = threading.Lock(), threading.Barrier(4)

    class Watching(CountingTeacher):
        def ask(self, images_NHWC: Any, *, request_id: str) -> Any:
            nonlocal in_flight, most
            with lock:
                in_flight += 1
                most = max(most, in_flight)
            together.wait(20)  # breaks unless four are here at once
            time.sleep(0.005)
            with lock:
                in_flight -= 1
            return super().ask(images_NHWC, request_id=request_id)

    run(local, draw(tmp_path / "public", *SHADES), Watching(teacher_config(concurrency=4)))
    assert most == 4


def test_questions_are_no_closer_together_than_the_rate_allows(local: Store, tmp_path: Path) -> None:
    times: list[float] = []

    def note(_number: int, answer: Any) -> Any:
        times.append(time.monotonic())
        return answer

    run(local, draw(tmp_path / "public", *SHADES), CountingTeacher(teacher_config(concurrency=8, requests_per_second=50), then=note))
    assert max(times) - min(times) >= 0.9 * (len(times) - 1) / 50  # a thread may note its time a little late


def test_after_an_error_those_in_flight_are_recorded_and_no_other_is_sent(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *SHADES)
    together = threading.Barrier(4)

    def then(number: int, answer: Any) -> Any:
        return answer * 2 if number == 0 else answer

    class Together(CountingTeacher):
        def ask(self, images_NHWC: Any, *, request_id: str) -> Any:
            time.sleep(0.1 if together.wait(20) else 0)  # so that one answers first
            return super().ask(images_NHWC, request_id=request_id)

    first = Together(teacher_config(concurrency=4), then=then)
    with pytest.raises(TeacherError, match="rows that sum to 1"):
        run(local, public, first)
    assert len(first.requests) == 4
    second = CountingTeacher()
    run(local, public, second)
    assert len(second.requests) == 12 - 3  # the three good answers were kept
    assert set(first.requests[0]) <= set(second.asked)


def test_shards_that_ask_at_once_ask_about_every_image_once_and_any_of_them_can_build_the_set(tmp_path: Path) -> None:
    public, objects = draw(tmp_path / "public", *SHADES), str(tmp_path / "objects")
    teachers = [CountingTeacher(teacher_config(concurrency=4)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda i: run(open_store(objects), public, teachers[i], shard=(i + 1, 4), run="together"), range(4)))
    assert sorted(shade for teacher in teachers for shade in teacher.asked) == list(SHADES)
    assert all(teacher.requests for teacher in teachers)
    assert sum(report.images for report in reports) == len(SHADES)
    late = CountingTeacher()
    whole = run(open_store(objects), public, late, run="together")
    assert late.requests == []
    assert (whole.images, whole.teachers["teacher"].run.images, whole.asked) == (24, 24, 24)  # one run, whichever of its processes asked
    alone = run(open_store(str(tmp_path / "alone")), public, CountingTeacher())
    assert whole.distillation_set_sha256 == alone.distillation_set_sha256
