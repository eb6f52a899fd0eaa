"""The teachers that the package brings: they know their public images, and no demo trains one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedhelp_core.demo import teacher
from fedhelp_core.demo.prepare import prepare_demo
from fedhelp_core.demo.tasks import DRAWN
from fedhelp_core.demo.teacher import TEACHERS, teachers_task
from fedhelp_core.objectives.open import objective_of
from fedhelp_core.weights.file import read_weights

pytestmark = pytest.mark.slow
KNOWN = sorted(path.stem for path in TEACHERS.glob("*.safetensors"))
BETTER_THAN = {"balanced_accuracy": 0.6, "dice": 0.75}  # chance: a twelfth, and half or less


@pytest.mark.parametrize("name", KNOWN)
def test_a_teacher_that_the_package_brings_knows_public_images_that_it_never_saw(name: str) -> None:
    drawn = DRAWN[name]
    task = teachers_task(drawn)
    objective = objective_of(task)
    model = objective.build(drawn.teacher)
    weights = read_weights(TEACHERS / f"{name}.safetensors", expected=None, max_bytes=2**20, sha256=None)
    model.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in weights.items()})
    images, targets = drawn.public.prepared(60, 2, task)  # another seed than it learnt from
    scores = objective.scored(model, torch.from_numpy(images), torch.from_numpy(targets), torch.device("cpu")).scores
    assert scores[objective.headline.name] > BETTER_THAN[objective.headline.name]


def test_a_demo_trains_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "train_teacher", lambda *_, **__: pytest.fail("a teacher was trained"))
    said: list[str] = []
    prepare_demo(tmp_path / "demo", progress=said.append)
    assert "teacher" in said and (tmp_path / "demo" / "teacher" / "MLmodel").is_file()


def test_the_presets_have_one() -> None:
    assert KNOWN == ["brain-segmentation", "lung-segmentation", "melanoma", "pneumonia"]
