"""Servers that misbehave in the middle of a prefetch: each ends in one sentence or is sat out, and nothing bad is ever written to a set.

Every case answers its first question well and its second badly; afterwards the server is well again and the prefetch is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhelp_core.errors import AccessDenied, FedHelpError, TeacherError, TeacherUnavailable
from fedhelp_core.softlabels import openinference, pacing
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import answer_to, draw, rows_by_shade, run
from tests.core.softlabels.inference_server import Answer, InferenceServer, json_answer, output_answer, pixels_of

pytestmark = pytest.mark.timeout(60)  # seconds; a second on an idle machine

SHADES = (0, 64, 128, 192)
GOOD_ROWS = {shade: [shade / 256, 1 - shade / 256] for shade in SHADES}
TIMEOUT = 0.5  # seconds that the teacher is given for one answer


def good(body: bytes, **changes: Any) -> Answer:
    """What the server should say, with fields of the document replaced."""
    status, headers, text = json_answer(answer_to(pixels_of(body)))
    return status, headers, json.dumps(json.loads(text) | changes).encode()


def says(status: int, headers: dict[str, str], body: bytes) -> Callable[[bytes], Answer]:
    return lambda _asked: (status, headers, body)


def rows(*answers: Any) -> Callable[[bytes], Answer]:
    return lambda _asked: json_answer(answers)


def half_a_body(asked: bytes) -> Answer:
    status, _, body = good(asked)
    return status, {"Content-Length": str(len(body)), "Connection": "close"}, body[: len(body) // 2]


def other_data(data: Any) -> Callable[[bytes], Answer]:
    return lambda asked: output_answer(data=data)(None, asked)


ENDED: dict[str, tuple[Callable[[bytes], Answer], type[FedHelpError], str]] = {  # second answer, error, its sentence
    "a row missing": (rows([1, 0]), TeacherError, r"expected 2 rows of 2 probabilities, got an array of shape \(1, 2\)"),
    "a class too many": (rows([0.5, 0.25, 0.25], [1, 0, 0]), TeacherError, r"expected 2 classes, got 3; correct `classes` in public_set\.teachers"),
    "NaN": (rows([float("nan"), 1], [1, 0]), TeacherError, "expected finite numbers, got NaN or infinity in row 0"),
    "infinity": (rows([1, 0], [float("inf"), 0]), TeacherError, "expected finite numbers, got NaN or infinity in row 1"),
    "no probabilities": (rows([1, 0], [0.5, 0.25]), TeacherError, r"expected rows that sum to 1, got 0\.75 in row 1; are these logits.*"),
    "negative": (rows([1.5, -0.5], [1, 0]), TeacherError, r"expected probabilities, got -0\.5 in row 0; are these logits.*"),
    "a hole": (other_data([1, 0, None, 0]), TeacherError, "expected finite numbers, got NaN or infinity in row 1"),
    "words": (other_data(["nevus", "nevus", "nevus", "nevus"]), TeacherError, "expected an output with shape, datatype and data, got .*"),
    "half a body": (half_a_body, TeacherUnavailable, r"the answer of .*/infer broke off \d+ bytes early; try again"),
    "half a document": (says(200, {}, b'{"outputs": [{"na'), TeacherError, "expected JSON, got .*"),
    "nothing": (says(200, {}, b""), TeacherError, "expected JSON, got b''"),
    "an error with status 200": (says(200, {}, b'{"error": "out of memory"}'), TeacherError, "expected an answer, got the error 'out of memory'"),
    "a login page": (says(200, {"Content-Type": "text/html"}, b"<html>log in</html>"), TeacherError, "expected JSON, got b'<html>log in</html>'"),
    "compressed": (lambda asked: (200, {"Content-Encoding": "gzip"}, good(asked)[2]), TeacherError,
                   "expected an answer that is not compressed, got Content-Encoding 'gzip'"),
    "slow drip": (lambda asked: (200, {"X-Drip": "0.1"}, good(asked)[2]), TeacherUnavailable,
                  r".*/infer gave no whole answer \(timed out\); try again later"),
    "redirect to another host": (says(307, {"Location": "http://elsewhere.example/v2"}, b""), TeacherError,
                                 "HTTP 307 from .*: it sends elsewhere, to http://elsewhere.example/v2; nobody else is asked: .*"),
    "huge body": (says(200, {}, b" " * 5000), TeacherError, r"expected at most 4000 bytes, got more; lower the teacher's batch_size"),
    "huge body of unknown length": (says(200, {"Transfer-Encoding": "chunked"}, b"1388\r\n" + b" " * 5000 + b"\r\n0\r\n\r\n"), TeacherError,
                                    r"expected at most 4000 bytes, got more; lower the teacher's batch_size"),
    "huge body announced": (says(200, {"Content-Length": "1000000000000", "Connection": "close"}, b""), TeacherError,
                            r"expected at most 4000 bytes, got more; lower the teacher's batch_size"),
    "another model version": (lambda asked: good(asked, model_version="8"), TeacherError,
                              "the server's model was version 7 when it was first asked, now it is 8; nothing of the new one was recorded: .*"),
    "the answer to another question": (lambda asked: good(asked, id="somebody else's"), TeacherError,
                                       "expected the answer to request [0-9a-f]{16}, got that to \"somebody else's\""),
    "login expired": (says(401, {}, b""), AccessDenied, "HTTP 401 from .*; check auth, and the credentials .*"),
    "model gone": (says(404, {}, b"no such model"), TeacherError, "HTTP 404 from .*: no such model"),
    "always 500": (says(500, {}, b"traceback"), TeacherUnavailable, r"HTTP 500 from .* \(traceback\); try again later"),
}

SAT_OUT: dict[str, Callable[[bytes], Answer]] = {  # what the second answer is; the third is well
    "429 with Retry-After": says(429, {"Retry-After": "1"}, b"slow down"),
    "503": says(503, {}, b"starting"),
    "502 of a proxy": says(502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
    "half a body": half_a_body,
    "slow drip": lambda asked: (200, {"X-Drip": "0.1"}, good(asked)[2]),
    "413": says(413, {}, b"too large"),
}


def answers_in(store: Store) -> list[str]:
    return [key for key in store.list("softlabels/") if "/answers/" in key]


def sets_in(store: Store) -> list[str]:
    return [key for key in store.list("softlabels/") if key.endswith("index.json")]


@pytest.fixture
def faulty(server: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> InferenceServer:
    monkeypatch.setattr(openinference, "MAX_ANSWER_BYTES", 4000)
    return server


def second_answer_is(server: InferenceServer, bad: Callable[[bytes], Answer], *, always: bool) -> None:
    """Questions are counted, not answers: with one slot they are the same."""
    server.answer = lambda _headers, body: (
        bad(body) if len(server.posts) == 2 or (always and len(server.posts) > 2) else good(body, model_version="7"))


@pytest.mark.parametrize(("bad", "error", "sentence"), ENDED.values(), ids=ENDED.keys())
def test_a_bad_answer_ends_the_prefetch_in_one_sentence_and_leaves_no_trace_in_the_set(
    faulty: InferenceServer, local: Store, tmp_path: Path, bad: Callable[[bytes], Answer], error: type[FedHelpError], sentence: str,
) -> None:
    public = draw(tmp_path / "public", *SHADES)
    second_answer_is(faulty, bad, always=True)
    with pytest.raises(error) as caught:
        run(local, public, faulty.teacher(timeout=TIMEOUT, retries=1))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("teacher 'teacher'")
    assert re.search(rf"{sentence}$", message), message
    assert len(answers_in(local)) == 1
    assert sets_in(local) == []

    faulty.answer = lambda _headers, body: good(body, model_version="7")
    report = run(local, public, faulty.teacher(timeout=30))
    assert rows_by_shade(local, report.distillation_set_sha256) == GOOD_ROWS
    calm = open_store(str(tmp_path / "calm"))
    assert run(calm, public, faulty.teacher(timeout=30)).distillation_set_sha256 == report.distillation_set_sha256


@pytest.mark.parametrize("bad", SAT_OUT.values(), ids=SAT_OUT.keys())
def test_a_passing_fault_is_sat_out(faulty: InferenceServer, local: Store, tmp_path: Path, bad: Callable[[bytes], Answer]) -> None:
    second_answer_is(faulty, bad, always=False)
    report = run(local, draw(tmp_path / "public", *SHADES), faulty.teacher(timeout=TIMEOUT, retries=4))
    assert rows_by_shade(local, report.distillation_set_sha256) == GOOD_ROWS


def test_retry_after_is_waited_for(faulty: InferenceServer, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[float | None] = []
    failed = pacing.Pace.failed

    def remembering(pace: pacing.Pace, now: float, retry_after: float | None) -> None:
        held.append(retry_after)
        failed(pace, now, None)

    monkeypatch.setattr(pacing.Pace, "failed", remembering)
    second_answer_is(faulty, says(429, {"Retry-After": "7"}, b""), always=False)
    run(local, draw(tmp_path / "public", *SHADES), faulty.teacher())
    assert held == [7.0]


def test_a_model_exchanged_without_a_word_in_its_answers_is_noticed_before_a_set_is_made(
    faulty: InferenceServer, local: Store, tmp_path: Path,
) -> None:
    faulty.model_metadata["versions"] = ["7"]

    def exchanged(_headers: Any, body: bytes) -> Answer:
        if len(faulty.posts) == 2:
            faulty.model_metadata["versions"] = ["8"]
        return good(body)

    faulty.answer = exchanged
    with pytest.raises(TeacherError, match="the server's model was exchanged while it was asked, from version 7 to 8"):
        run(local, draw(tmp_path / "public", *SHADES), faulty.teacher())
    assert sets_in(local) == []
