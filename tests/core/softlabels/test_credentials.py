"""Logging in at a teacher: the secret comes from the environment or a mounted file, and goes to the server alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedhelp_core.config.teachers import TeacherAuth
from fedhelp_core.errors import AccessDenied, ConfigError, FedHelpError, TeacherError
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.helpers import ABOUT, SIDE, answer_to, draw, run
from tests.core.softlabels.inference_server import Answer, InferenceServer, json_answer, pixels_of
from tests.tiny import TinyFederation

SECRET = "s3cr3t-token"


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def told(server: InferenceServer) -> set[str | None]:
    """Every value of Authorization that the server was sent, also with questions about metadata."""
    return {headers["Authorization"] for headers in [*server.get_headers, *(headers for headers, _ in server.posts)]}


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret" / "token"
    path.parent.mkdir()
    path.write_text(f"{SECRET}\n")
    return path


class TestLogin:
    @pytest.mark.parametrize(("auth", "secret", "header"), [
        ({"kind": "bearer"}, SECRET, f"Bearer {SECRET}"),
        ({"kind": "basic", "username": "hub"}, SECRET, basic(f"hub:{SECRET}")),
        ({"kind": "basic"}, f"hub:{SECRET}", basic(f"hub:{SECRET}")),
    ], ids=["bearer", "basic", "basic with the user in the secret"])
    @pytest.mark.parametrize("place", ["environment", "file"])
    def test_every_request_carries_it(
        self, server: InferenceServer, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, auth: dict[str, Any],
        secret: str, header: str,
    ) -> None:
        monkeypatch.setenv("TEACHER_SECRET", secret)
        (tmp_path / "secret").write_text(secret + "\n")
        where = {"env": "TEACHER_SECRET"} if place == "environment" else {"file": tmp_path / "secret"}
        run(local, draw(tmp_path / "public", 0, 64, 128), server.teacher(auth=TeacherAuth(**auth, **where)))
        assert told(server) == {header}

    def test_without_auth_none_is_sent(self, server: InferenceServer, local: Store, tmp_path: Path) -> None:
        run(local, draw(tmp_path / "public", 0), server.teacher())
        assert told(server) == {None}

    def test_a_file_that_is_rotated_meanwhile_is_read_again(self, server: InferenceServer, local: Store, tmp_path: Path, secret_file: Path) -> None:
        def rotating(_headers: Any, body: bytes) -> Answer:
            secret_file.write_text("the next one")
            return json_answer(answer_to(pixels_of(body)))

        server.answer = rotating
        run(local, draw(tmp_path / "public", 0, 64, 128), server.teacher(auth=TeacherAuth(kind="bearer", file=secret_file)))
        assert [headers["Authorization"] for headers, _ in server.posts] == [f"Bearer {SECRET}", "Bearer the next one"]

    @pytest.mark.parametrize(("auth", "error", "sentence"), [
        ({"env": "NO_SUCH_VARIABLE"}, AccessDenied, r"the secret in \$NO_SUCH_VARIABLE is missing or empty; set it from a Secret"),
        ({"file": "absent"}, AccessDenied, r"the secret in .*absent cannot be read \(No such file or directory\); mount the Secret"),
        ({"file": "binary"}, AccessDenied, r"the secret in .*binary cannot be read \(it is not UTF-8\)"),
        ({"file": "lines"}, ConfigError, r"the secret in .*lines is no single line of printable text"),
        ({"file": "letters"}, ConfigError, r"the secret in .*letters is no single line of printable text"),
        ({"file": "no-colon", "kind": "basic"}, ConfigError, r"the secret in .*no-colon: expected user:password, or the user name as auth.username"),
    ])
    def test_a_secret_that_cannot_be_used_is_named_by_its_place_and_nothing_is_asked(
        self, server: InferenceServer, tmp_path: Path, auth: dict[str, Any], error: type[FedHelpError], sentence: str,
    ) -> None:
        for name, body in {"binary": b"\xff\xfe", "lines": b"s3cr3t\r\nX-Injected: yes", "no-colon": SECRET.encode(),
                           "letters": "s3cr3t-\u20ac".encode()}.items():
            (tmp_path / name).write_bytes(body)
        place = {"file": tmp_path / auth["file"]} if "file" in auth else {"env": auth["env"]}
        with pytest.raises(error, match=f"^teacher 'teacher': {sentence}") as caught:
            server.teacher(auth=TeacherAuth(kind=auth.get("kind", "bearer"), **place)).prepare(ABOUT)
        assert "s3cr3t" not in str(caught.value)
        assert server.gets == []

    @pytest.mark.parametrize(("fields", "words"), [
        ({"kind": "bearer"}, "give either env or file"),
        ({"kind": "bearer", "env": "A", "file": "b"}, "give either env or file"),
        ({"kind": "bearer", "env": "A", "username": "me"}, "username: belongs to kind 'basic'"),
        ({"kind": "bearer", "env": "A", "token": SECRET}, "[Ee]xtra"),
    ])
    def test_the_config_has_no_place_for_the_secret_itself(self, fields: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            TeacherAuth(**fields)


class TestSecrecy:
    @pytest.mark.parametrize("answer", [
        lambda headers, _body: (400, {}, b"refused: " + headers["Authorization"].encode()),
        lambda headers, _body: (500, {}, b"refused: " + headers["Authorization"].encode()),
        lambda headers, _body: (307, {"Location": "/?" + headers["Authorization"].split()[1]}, b""),
        lambda headers, _body: (200, {}, json.dumps({"error": headers["Authorization"]}).encode()),
        lambda headers, _body: (200, {}, headers["Authorization"].encode()),
        lambda headers, _body: (200, {}, json.dumps({"outputs": headers["Authorization"]}).encode()),
        lambda headers, _body: (200, {}, json.dumps({"id": headers["Authorization"]}).encode()),
    ], ids=["400", "500", "redirect", "error", "no JSON", "no outputs", "another id"])
    @pytest.mark.parametrize("kind", ["bearer", "basic"])
    def test_a_server_that_repeats_it_does_not_get_it_into_a_message_or_the_ledger(
        self, server: InferenceServer, local: Store, tmp_path: Path, secret_file: Path, answer: Any, kind: str,
    ) -> None:
        server.answer = answer
        auth = TeacherAuth(kind="bearer", file=secret_file) if kind == "bearer" else TeacherAuth(kind="basic", username="hub", file=secret_file)
        with pytest.raises(FedHelpError) as caught:
            run(local, draw(tmp_path / "public", 0), server.teacher(auth=auth, retries=0))
        written = b"".join(local.get(key) for key in local.list(""))
        for text in (SECRET, basic(f"hub:{SECRET}").split()[1]):
            assert text not in str(caught.value)
            assert text.encode() not in written
        assert written  # the request was noted

    @pytest.mark.slow
    def test_it_is_in_no_log_and_in_no_object_of_a_run_that_fails_and_of_one_that_succeeds(
        self, server: InferenceServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        public = draw(tmp_path / "public", 0, 64, 128)
        teacher = {"name": "teacher", "kind": "openinference", "uri": server.url, "classes": 2, "batch_size": 2,
                   "auth": {"kind": "bearer", "env": "TEACHER_SECRET"}}
        tiny = TinyFederation.written(tmp_path / "run", tmp_path, task__image_size=SIDE, public_set={"images": str(public), "teachers": [teacher]})
        tiny.run("r").freeze(tiny.load().to_yaml())
        command = [sys.executable, "-m", "fedhelp_components.soft_label_prefetch", "--store", str(tiny.store), "--run", "r"]
        outputs = []
        for answer in (lambda headers, _body: (403, {}, headers["Authorization"].encode()), server.answer):
            server.answer = answer
            outputs.append(subprocess.run(
                command, capture_output=True, text=True, timeout=120, env=os.environ | {"TEACHER_SECRET": SECRET, "PYTHONFAULTHANDLER": "1"}))
        refused, done = outputs
        assert (refused.returncode, done.returncode) == (14, 0), refused.stderr + done.stderr  # 14: access
        assert "HTTP 403" in refused.stdout + refused.stderr
        assert SECRET not in "".join(output.stdout + output.stderr for output in outputs)
        store = open_store(str(tiny.store))
        assert not [key for key in store.list("") if SECRET.encode() in store.get(key)]

    def test_credentials_in_the_address_are_refused(self, server: InferenceServer) -> None:
        with pytest.raises(ValidationError, match="uri: carries credentials, which must not be in this file; use auth"):
            server.teacher(uri=server.url.replace("//", "//hub:password@"))

    def test_it_does_not_follow_a_redirect(self, server: InferenceServer, local: Store, tmp_path: Path, secret_file: Path) -> None:
        elsewhere = InferenceServer()
        server.answer = lambda *_: (307, {"Location": elsewhere.url + "/infer"}, b"")
        try:
            with pytest.raises(TeacherError, match="nobody else is asked"):
                run(local, draw(tmp_path / "public", 0), server.teacher(auth=TeacherAuth(kind="bearer", file=secret_file)))
            assert (elsewhere.gets, elsewhere.posts) == ([], [])
        finally:
            elsewhere.close()
