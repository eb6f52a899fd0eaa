"""Every public image is asked about once, whatever happens."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.errors import ConfigError, TeacherError, TeacherUnavailable
from fedhelp_core.softlabels.asking import Progress
from fedhelp_core.softlabels.ledger import Ledger, batch_sha
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.teachers import TeacherIdentity
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import (
    ABOUT,
    PICTURES,
    SIDE,
    CountingTeacher,
    Killed,
    answer_to,
    draw,
    killed_at,
    rows_by_shade,
    run,
    teacher_config,
)


class TestExactlyOnce:
    def test_every_image_is_asked_about_once_and_answered_as_the_teacher_said(self, store: Store, tmp_path: Path) -> None:
        teacher = CountingTeacher()
        report = run(store, draw(tmp_path / "public", 0, 64, 128, 192, 255), teacher)
        assert teacher.asked == [0, 64, 128, 192, 255]
        assert [len(request) for request in teacher.requests] == [2, 2, 1]
        assert (report.images, report.asked, report.cached, report.duplicates, report.classes) == (5, 5, 0, 0, 2)
        assert report.teachers["teacher"].run.requests == 3
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
        assert (second.asked, second.cached, second.teachers["teacher"].run.requests) == (0, 3, 0)
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

    @pytest.mark.parametrize("change", [{"version": "2"}, {"name": "successor"}, {"output": "logits"}, {"version": "2", "classes": 3},
                                        {"prompts": ("a mole", "a melanoma")}])
    def test_another_teacher_is_asked_anew(self, local: Store, tmp_path: Path, change: dict[str, Any]) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        three = change.get("classes") == 3
        teacher = CountingTeacher(teacher_config(**change), then=lambda _, answer: np.pad(answer, ((0, 0), (0, 1))) if three else answer)
        run(local, public, teacher)
        assert teacher.asked == [0, 50]

    @pytest.mark.parametrize("change", [{"uri": "models:/moved/7"}, {"weight": 5.0}, {"batch_size": 1}, {"kind": "openinference"},
                                        {"concurrency": 8}])
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
        rows = rows_by_shade(store, one.distillation_set_sha256)
        assert all(row in ([0.25, 0.75], [0.75, 0.25]) for row in rows.values())
        late = CountingTeacher()
        assert run(store, public, late).distillation_set_sha256 == one.distillation_set_sha256
        assert late.requests == []

    def test_the_first_of_two_sets_of_the_same_images_is_the_one_for_everybody(self, local: Store, tmp_path: Path) -> None:
        """As when a prefetch at the same time, which asked first, records its answer after the other one has built its set."""
        public = draw(tmp_path / "public", 0, 50)
        ledger = Ledger(local, TeacherIdentity.of(teacher_config(), PICTURES.words, ABOUT))
        hashes = read_public_images(public, PICTURES).hashes
        number = ledger.begin(hashes, run="", highest=None)
        first = run(local, public, CountingTeacher())
        ledger.record(number, hashes, np.array([[0.75, 0.25]] * 2, np.float16), run="", tries=1, seconds=0.1, served_version="")

        assert run(local, public, CountingTeacher()).distillation_set_sha256 == first.distillation_set_sha256

    def test_of_two_answers_about_an_image_the_one_asked_first_counts_always(self, local: Store) -> None:
        one, other = "11" * 32, "22" * 32
        ledger = Ledger(local, TeacherIdentity.of(teacher_config(), "as it is", ABOUT))
        again = Ledger(local, TeacherIdentity.of(teacher_config(), "as it is", ABOUT))
        first, second = ledger.begin([one], run="", highest=None), again.begin([one, other], run="", highest=None)
        assert (first, second) == (1, 2)
        told = {"run": "", "tries": 1, "seconds": 0.1, "served_version": ""}
        again.record(second, [one, other], np.array([[0.75, 0.25]] * 2, np.float16), **told)  # answered before the first
        assert again.rows([one]).tolist() == [[0.75, 0.25]]
        ledger.record(first, [one], np.array([[0.25, 0.75]], np.float16), **told)
        again.refresh()
        for reader in (again, Ledger(local, TeacherIdentity.of(teacher_config(), "as it is", ABOUT))):
            assert reader.rows([other, one]).tolist() == [[0.75, 0.25], [0.25, 0.75]]

    def test_a_request_is_named_by_its_images_whoever_asks(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        teacher = CountingTeacher()
        run(local, public, teacher)
        hashes = read_public_images(public, PICTURES).hashes
        assert teacher.ids == [batch_sha(hashes)] == [batch_sha(hashes[::-1])]
        assert batch_sha(hashes[:1]) != batch_sha(hashes)

    def test_an_answer_that_cannot_be_used_is_not_recorded_and_those_before_it_are(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50, 100, 150)
        broken = CountingTeacher(then=lambda number, answer: answer * 2 if number == 1 else answer)
        with pytest.raises(TeacherError, match="rows that sum to 1"):
            run(local, public, broken)
        assert len([key for key in local.list("softlabels/ledger/") if "/answers/" in key]) == 1
        repaired = CountingTeacher()
        run(local, public, repaired)
        assert repaired.asked == sorted(broken.requests[1])

    def test_a_busy_teacher_is_asked_the_same_again(self, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert (report.asked, report.teachers["teacher"].run.requests) == (2, 1)

    def test_a_teacher_that_stays_away_ends_prefetch_and_keeps_what_it_answered(
        self, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
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
        told: list[Progress] = []
        teacher = CountingTeacher()
        public = PublicSetConfig(images=draw(tmp_path / "public", 0, 50, 100), teachers=(teacher.config,))
        prefetch(local, public, TaskConfig(image_size=SIDE), teachers=[teacher], progress=told.append)
        assert [(step.teacher, step.done, step.total) for step in told] == [("teacher", 2, 3), ("teacher", 3, 3)]

    def test_another_class_count_under_the_same_version_is_refused_before_asking(self, local: Store, tmp_path: Path) -> None:
        public = draw(tmp_path / "public", 0, 50)
        run(local, public, CountingTeacher())
        teacher = CountingTeacher(teacher_config(classes=3))
        with pytest.raises(ConfigError, match=r"config says 3 classes, but it answered with 2 before.*another version"):
            run(local, public, teacher)
        assert teacher.requests == []
