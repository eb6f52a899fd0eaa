"""Several teachers together: q is their weighted mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.errors import ConfigError
from fedhelp_core.softlabels.distillation_set import read_index
from fedhelp_core.store.base import Store
from tests.core.softlabels.helpers import CountingTeacher, draw, rows_by_shade, run, teacher_config


class TestMixOfTeachers:
    def test_answers_are_mixed_by_weight_and_the_weights_are_shares(self, local: Store, tmp_path: Path) -> None:
        one = CountingTeacher(teacher_config(name="one", weight=1), then=lambda _, answer: [[1, 0]] * len(answer))
        other = CountingTeacher(teacher_config(name="other", weight=3, batch_size=3), then=lambda _, answer: [[0.5, 0.5]] * len(answer))
        report = run(local, draw(tmp_path / "public", 0, 50, 100), one, other)
        rows = rows_by_shade(local, report.distillation_set_sha256)
        assert set(map(tuple, rows.values())) == {(0.625, 0.375)}  # 1/4 · (1, 0) + 3/4 · (1/2, 1/2)
        assert (report.asked, report.teachers["one"].run.requests, report.teachers["other"].run.requests) == (6, 2, 1)
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
