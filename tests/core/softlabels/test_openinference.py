"""The Open Inference Protocol as servers speak it, and what becomes of those that do not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import AccessDenied, ConfigError, TeacherError, TeacherUnavailable
from fedhelp_core.softlabels import openinference
from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from fedhelp_core.softlabels.teachers import MaybeAnswered, NotAnswered
from fedhelp_core.store.base import Store
from tests.core.softlabels.helpers import ABOUT, SIDE, answer_to, draw, rows_by_shade, run, shades_of, teacher_config
from tests.core.softlabels.inference_server import InferenceServer, binary_answer, json_answer, output_answer, pixels_of

IMAGES = np.stack([np.full((SIDE, SIDE, 3), shade, np.uint8) for shade in (64, 192)])
IMAGES[:, :, :, 2] = 51  # channels differ, so that their place shows; 51 / 255 = 1 / 5


def ask(teacher: OpenInferenceTeacher) -> Any:
    teacher.prepare(ABOUT)
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

    def test_what_the_model_is_like_is_asked_before_the_first_question(self, server: InferenceServer) -> None:
        teacher = server.teacher()
        teacher.prepare(ABOUT)
        assert (server.gets, server.posts) == (["/v2", "/v2/models/derma"], [])
        teacher.ask(IMAGES, request_id="one")
        teacher.ask(IMAGES, request_id="two")
        assert (len(server.gets), len(server.posts)) == (2, 2)

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
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]},
         r"images of 8 x 8 pixels \(the teacher's or the task's image_size\)"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}] * 2}, "one input, the images, got 2 inputs"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}], "outputs": [{"name": "p", "shape": [-1, 5]}]},
         r"an output of 2 classes per image, got 'p' of shape \[-1, 5\]; correct `classes`"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
          "outputs": [{"name": "p", "shape": [-1, 2]}, {"name": "q", "shape": [-1, 2]}]}, "output_name, since the model has several.*got p, q"),
        (b"<html>", "expected JSON, got b'<html>'"),
        pytest.param(b"[" * 100_000, "expected JSON", id="deep"),
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
        (429, NotAnswered, r"HTTP 429.*\(the batch is too large\); try again later"),
        (500, MaybeAnswered, "HTTP 500"),
        (503, NotAnswered, "HTTP 503.*try again later"),
    ])
    def test_a_refusal_is_the_error_of_its_kind(self, server: InferenceServer, status: int, error: type[Exception], words: str) -> None:
        server.answer = lambda *_: (status, {}, b"the batch is too large")
        with pytest.raises(error, match=words) as caught:
            ask(server.teacher())
        assert type(caught.value) is error

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirected_question_is_never_taken_as_answered(self, server: InferenceServer, status: int) -> None:
        server.answer = lambda *_: (status, {"Location": "/moved"}, b"")
        server.model_metadata = server.model_metadata | {"outputs": [{"name": "p", "datatype": "FP32", "shape": [2, 2], "data": [1, 0, 1, 0]}]}
        with pytest.raises(TeacherError, match=rf"HTTP {status} .*sends elsewhere, to /moved; nobody else is asked: give the teacher's own address"):
            ask(server.teacher())
        assert "/moved" not in server.gets

    def test_a_teacher_that_does_not_answer_in_time_is_unavailable(self, server: InferenceServer) -> None:
        answered = threading.Event()

        def late(_headers: Any, _body: bytes) -> tuple[int, dict[str, str], bytes]:
            answered.wait(10)
            return 200, {}, b"{}"

        server.answer = late
        started = time.monotonic()
        with pytest.raises(MaybeAnswered, match=r"infer gave no whole answer .*timed out"):
            ask(server.teacher(timeout=0.3))
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
            with pytest.raises(TeacherUnavailable, match=r"gave no whole answer|broke off 499 bytes early"):
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
        (b"{}", {"Inference-Header-Content-Length": "many"}, "expected a number up to the answer's length as inference-header.*'many'"),
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
        assert [key for key in local.list("softlabels/") if "/answers/" in key or "/teachers/" in key] == []

    def test_a_server_that_recovers_is_asked_every_image_once(
        self, server: InferenceServer, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
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
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.config.teachers import PublicSetConfig, TeacherConfig
from fedhelp_core.softlabels.prefetch import prefetch
from fedhelp_core.store.open import open_store
store, images, uri, side = sys.argv[1:]
teacher = TeacherConfig(name="teacher", kind="openinference", uri=uri, classes=2, batch_size=2, concurrency=1)
prefetch(open_store(store), PublicSetConfig(images=images, teachers=(teacher,)), TaskConfig(image_size=int(side)))
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
