"""`fedhelp register` through kfp's own client, against a server that keeps pipelines as Kubeflow's REST interface describes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner, Result

from fedhelp_components.cli import main
from fedhelp_core.errors import AccessDenied, ConfigError, StoreUnavailable

ROOT = "/apis/v2beta1"


class Kubeflow(ThreadingHTTPServer):
    """Pipelines and versions in memory; `refuse` answers everything with that status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, dict[str, Any]]] = {}
        self.tokens: set[str] = set()
        self.refuse: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self, pipeline: str) -> list[str]:
        identity = next(i for i, p in self.pipelines.items() if p["display_name"] == pipeline)
        return [version["display_name"] for version in self.versions[identity].values()]


class _Handler(BaseHTTPRequestHandler):
    server: Kubeflow

    def _answer(self, body: object, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _handle(self, body: bytes) -> None:
        server, url = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = url.path.removeprefix(ROOT).strip("/").split("/")
        if "Authorization" in self.headers:
            server.tokens.add(self.headers["Authorization"])
        if parts == ["healthz"]:
            self._answer({"multi_user": False})
        elif server.refuse is not None:
            self._answer({"message": "refused for the test"}, server.refuse)
        elif (self.command, *parts) == ("GET", "pipelines"):
            wanted = json.loads(query["filter"])["predicates"][0]["stringValue"]
            self._answer({"pipelines": [p for p in server.pipelines.values() if p["display_name"] == wanted]})
        elif (self.command, *parts) == ("POST", "pipelines"):
            made = {**json.loads(body), "pipeline_id": f"p{len(server.pipelines)}"}
            server.pipelines[made["pipeline_id"]] = made
            server.versions[made["pipeline_id"]] = {}
            self._answer(made)
        elif (self.command, *parts) == ("POST", "pipelines", "upload_version"):
            versions = server.versions[query["pipelineid"]]
            made = {"pipeline_id": query["pipelineid"], "pipeline_version_id": f"v{len(versions)}", "display_name": query["name"]}
            versions[made["pipeline_version_id"]] = made
            form: Message = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\n\n".encode() + body)
            assert b"pipelineInfo" in next(iter(form.get_payload())).get_payload(decode=True)  # type: ignore[union-attr, arg-type, operator]
            self._answer(made)
        elif self.command == "GET":  # pipelines/<id>/versions, one a page
            found = list(server.versions[parts[1]].values())
            start = int(query.get("page_token") or 0)
            more = {"next_page_token": str(start + 1)} if start + 1 < len(found) else {}
            self._answer({"pipeline_versions": found[start : start + 1], **more})
        elif len(parts) == 4:
            del server.versions[parts[1]][parts[3]]
            self._answer({})
        else:
            assert not server.versions[parts[1]], "a pipeline with versions cannot be deleted"
            del server.pipelines[parts[1]]
            self._answer({})

    def do_GET(self) -> None:
        self._handle(b"")

    do_DELETE = do_GET

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps settings there
    server = Kubeflow()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "fedhelp.yaml"
    path.write_text("pipelineInfo: {name: fedhelp}\nschemaVersion: 2.1.0\n")
    return path


def register(server: Kubeflow | str, *arguments: str | Path) -> Result:
    endpoint = server if isinstance(server, str) else server.address
    return CliRunner().invoke(main, ["register", "--endpoint", endpoint, *map(str, arguments)])


def test_the_same_content_is_registered_once_and_another_content_is_another_version(kubeflow: Kubeflow, package: Path) -> None:
    first = register(kubeflow, package)
    again = register(kubeflow, package)
    package.write_text(package.read_text() + "# changed\n")
    changed = register(kubeflow, package)

    assert [r.exit_code for r in (first, again, changed)] == [0, 0, 0], first.output
    assert "registered" in first.output
    assert "is there already" in again.output
    assert len(kubeflow.pipelines) == 1
    assert len(kubeflow.names("fedhelp")) == 2
    assert register(kubeflow, package).output.count("is there already") == 1  # found on the second page


def test_this_products_own_pipelines_are_registered_without_a_package(kubeflow: Kubeflow) -> None:
    assert register(kubeflow).exit_code == 0

    assert {p["display_name"] for p in kubeflow.pipelines.values()} == {"fedhelp", "fedhelp-compact"}


def test_removing_takes_versions_and_pipeline_and_may_be_repeated(kubeflow: Kubeflow, package: Path) -> None:
    register(kubeflow, package)

    removed, again = register(kubeflow, package, "--remove"), register(kubeflow, package, "--remove")

    assert "removed" in removed.output
    assert "was not there" in again.output
    assert (removed.exit_code, again.exit_code) == (0, 0)
    assert kubeflow.pipelines == {}


def test_a_token_is_shown_where_one_is_mounted(kubeflow: Kubeflow, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of-this-pod")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))

    register(kubeflow, package)

    assert kubeflow.tokens == {"Bearer of-this-pod"}


@pytest.mark.parametrize(("status", "code", "said"), [
    (401, AccessDenied.exit_code, "does not let this account register pipelines"),
    (403, AccessDenied.exit_code, "pipelines.tokenAudience"),
    (503, StoreUnavailable.exit_code, "cannot answer now"),
    (400, 10, "refused the pipeline"),
])
def test_a_refusal_is_one_sentence_with_its_exit_code(status: int, code: int, said: str, kubeflow: Kubeflow, package: Path) -> None:
    kubeflow.refuse = status

    result = register(kubeflow, package)

    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_pipeline_is_refused_before_anything_is_asked(kubeflow: Kubeflow, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("kind: ConfigMap\n")

    result = register(kubeflow, tmp_path / "other.yaml")

    assert result.exit_code == ConfigError.exit_code
    assert "is no compiled pipeline" in result.output


def test_an_endpoint_that_does_not_answer_is_named(package: Path) -> None:
    result = register("http://127.0.0.1:9", package)

    assert result.exit_code == StoreUnavailable.exit_code
    assert "http://127.0.0.1:9: not reached" in result.output
