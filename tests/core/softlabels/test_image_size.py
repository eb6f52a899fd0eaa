"""A teacher may see images larger than the task's; the distillation set keeps the task's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig
from fedhelp_core.softlabels import prefetch as prefetch_module
from fedhelp_core.softlabels.distillation_set import load_distillation_set, read_index
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.softlabels.public_images import read_public_images
from fedhelp_core.softlabels.teachers import Question, Readiness
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.models import save_pyfunc_from_code
from tests.core.softlabels.helpers import SIDE, answer_to, draw, in_memory, rows_by_shade, run, teacher_config

LARGE = 3 * SIDE


class SizedTeacher:
    """Remembers the shape of every batch, and of the images that it was told of. `row`: what it answers, else as the helpers' teacher."""

    def __init__(self, row: list[float] | None = None, **changes: Any) -> None:
        self.config = teacher_config(**changes)
        self.told: set[tuple[int, ...]] = set()
        self.shapes: list[tuple[int, ...]] = []
        self._row = row

    def prepare(self, question: Question) -> Readiness:
        self.told.add(question.shape)
        return Readiness(batch_size=self.config.batch_size, concurrency=1, served_version="")

    def ask(self, images_NHWC: NDArray[np.uint8], *, request_id: str) -> Any:
        self.shapes.append(images_NHWC.shape)
        return answer_to(images_NHWC) if self._row is None else [self._row] * len(images_NHWC)


def test_a_teacher_sees_its_own_size_and_the_set_has_the_tasks(local: Store, tmp_path: Path) -> None:
    teacher = SizedTeacher(image_size=LARGE)
    report = run(local, draw(tmp_path / "public", 0, 64, 128), teacher)
    assert teacher.shapes == [(2, LARGE, LARGE, 3), (1, LARGE, LARGE, 3)]
    assert teacher.told == {(3, LARGE, LARGE)}
    images_NCHW, _ = in_memory(load_distillation_set(local, report.distillation_set_sha256))
    assert images_NCHW.shape == (3, 3, SIDE, SIDE)
    assert rows_by_shade(local, report.distillation_set_sha256) == {0: [0, 1], 64: [0.25, 0.75], 128: [0.5, 0.5]}
    assert f"shorter side {LARGE}," in read_index(local, report.distillation_set_sha256).teachers[0].preprocessing


def test_teachers_of_several_sizes_are_mixed(local: Store, tmp_path: Path) -> None:
    small, large, larger = (
        SizedTeacher([1, 0], name="small", weight=2), SizedTeacher([0, 1], name="large", image_size=LARGE),
        SizedTeacher([0, 1], name="larger", image_size=4 * SIDE))
    report = run(local, draw(tmp_path / "public", 0, 64), small, large, larger)
    assert [teacher.shapes for teacher in (small, large, larger)] == [[(2, side, side, 3)] for side in (SIDE, LARGE, 4 * SIDE)]
    assert set(map(tuple, rows_by_shade(local, report.distillation_set_sha256).values())) == {(0.5, 0.5)}


def test_only_images_that_it_was_never_asked_about_are_read_at_its_size(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(local, draw(tmp_path / "public", 0, 64), SizedTeacher(image_size=LARGE))
    public = draw(tmp_path / "public", 0, 64, 128)
    read: list[tuple[tuple[int, ...], int]] = []

    def reading(*arguments: Any, **options: Any) -> Any:
        images = read_public_images(*arguments, **options)
        read.append((images.shape, len(images.hashes)))
        return images

    monkeypatch.setattr(prefetch_module, "read_public_images", reading)
    teacher = SizedTeacher(image_size=LARGE)
    run(local, public, teacher)
    assert teacher.shapes == [(1, LARGE, LARGE, 3)]
    assert read == [((3, SIDE, SIDE), 3), ((3, LARGE, LARGE), 1)]
    run(local, public, teacher)
    assert read[2:] == [((3, SIDE, SIDE), 3)]


def test_another_size_is_asked_anew_and_the_tasks_own_is_none(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", 0, 64)
    asked = []
    for size in (None, SIDE, LARGE, None, LARGE):
        teacher = SizedTeacher(image_size=size)
        run(local, public, teacher)
        asked.append(teacher.shapes)
    assert asked == [[(2, SIDE, SIDE, 3)], [], [(2, LARGE, LARGE, 3)], [], []]


def test_shards_ask_at_the_teachers_size_each_about_its_own(local: Store, tmp_path: Path) -> None:
    public = draw(tmp_path / "public", *range(0, 250, 10))
    teachers = [SizedTeacher(image_size=LARGE) for _ in range(3)]
    for teacher, shard in zip(teachers, ((1, 2), (2, 2), None), strict=True):
        run(local, public, teacher, shard=shard)
    assert sum(shape[0] for teacher in teachers[:2] for shape in teacher.shapes) == 25
    assert all(teacher.shapes for teacher in teachers[:2])
    assert teachers[2].shapes == []


@pytest.mark.slow
def test_a_models_process_gets_images_of_its_size(tmp_path: Path) -> None:
    save_pyfunc_from_code(tmp_path / "model", code=Path(__file__).with_name("side_model.py"), artifacts={}, settings={})
    teacher = teacher_config(uri=str(tmp_path / "model"), image_size=224)
    store = open_store(str(tmp_path / "objects"))
    public = PublicSetConfig(images=draw(tmp_path / "public", 0, 64), teachers=(teacher,))
    report = prefetch(store, public, TaskConfig(image_size=SIDE))
    assert set(map(tuple, rows_by_shade(store, report.distillation_set_sha256).values())) == {(224 / 1024, 1 - 224 / 1024)}
