"""Only usable answers are let through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import TeacherError
from fedhelp_core.softlabels.answers import checked_probabilities
from tests.core.softlabels.helpers import teacher_config

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
