"""What is said of answers that teach nothing, and of those that do."""

from __future__ import annotations

import numpy as np

from fedhelp_core.softlabels.verdict import says_always_the_same, verdict

_VARIED = np.random.default_rng(0).dirichlet((0.3, 0.3, 0.3), size=20)


def test_varied_answers_are_not_remarked_upon() -> None:
    assert verdict(_VARIED) == []


def test_one_answer_for_all_images_is_told_and_is_no_teacher() -> None:
    constant = np.tile([0.1, 0.8, 0.1], (120, 1))
    assert says_always_the_same(constant) and not says_always_the_same(_VARIED)
    assert verdict(constant) == ["answers the same for 120 of 120 images, whatever they show; look at its preprocessing and its weights"]


def test_one_favourite_for_all_images_is_told() -> None:
    answers = np.stack([np.linspace(0.55, 0.9, 20), 1 - np.linspace(0.55, 0.9, 20)], axis=1)[:, ::-1]
    assert [one.split(";")[0] for one in verdict(answers)] == ["says class 1 of 20 of 20 images"]


def test_answers_that_hardly_decide_are_told() -> None:
    answers = np.full((20, 3), 1 / 3) + np.random.default_rng(0).normal(size=(20, 3)) * 0.01
    (remark,) = verdict(answers / answers.sum(axis=1, keepdims=True))
    assert remark.startswith("hardly decides between 3 classes on 20 images")


def test_a_few_images_may_well_be_alike() -> None:
    assert verdict(np.tile([0.1, 0.9], (3, 1))) == []
