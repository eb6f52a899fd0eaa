"""Kubeflow Pipelines' REST interface as a server of our own, for kfp's own client. Used by tests of `fedhelp register` and `fedhelp submit`."""

from __future__ import annotations

import json
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = "/apis/v2beta1"


class Kubeflow(ThreadingHTTPServer):
    """Pipelines, versions and runs in memory; `refuse` answers everything with that status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, dict[str, Any]]] = {}
        self.uploads: dict[str, str] = {}
        """Name of a version -> the compiled pipeline."""
        self.runs: list[dict[str, Any]] = []
        self.recurring: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.refuse: int | None = None
        self.serves_ui = False
        self.version = "2.17.0"
        self.state: str | None = "SUCCEEDED"
        """Of every run; None: the server cannot say."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, pipeline: str, versions: int = 1) -> None:
        """As `fedhelp register` does."""
        identity = f"p{len(self.pipelines)}"
        self.pipelines[identity] = {"pipeline_id": identity, "display_name": pipeline}
        self.versions[identity] = {
            f"v{number}": {"pipeline_id": identity, "pipeline_version_id": f"v{number}", "display_name": f"{pipeline}-{number}"}
            for number in range(versions)}

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

    def _page(self) -> None:
        """The UI's, which also passes the API on; the API server itself has none."""
        content = b"<!doctype html><title>Kubeflow Pipelines</title>" if self.server.serves_ui else b"404 page not found\n"
        self.send_response(200 if self.server.serves_ui else 404)
        self.send_header("Content-Type", "text/html" if self.server.serves_ui else "text/plain")
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
            self._answer({"commit_sha": "unknown", "tag_name": server.version, "multi_user": False, "pipeline_store": "database"})
        elif server.refuse is not None:
            self._answer({"message": "refused for the test"}, server.refuse)
        elif (self.command, *parts) == ("GET", "experiments"):
            self._answer({})
        elif (self.command, *parts) == ("POST", "experiments"):
            self._answer({**json.loads(body), "experiment_id": "e0"})
        elif (self.command, *parts) == ("POST", "runs"):
            server.runs.append(json.loads(body))
            self._answer({**server.runs[-1], "run_id": f"r{len(server.runs) - 1}"})
        elif (self.command, *parts) == ("POST", "recurringruns"):
            server.recurring.append(json.loads(body))
            self._answer({**server.recurring[-1], "recurring_run_id": f"m{len(server.recurring) - 1}"})
        elif self.command == "GET" and parts[0] == "runs":
            started = server.runs[int(parts[1].removeprefix("r"))]
            self._answer({**started, "run_id": parts[1], "state": server.state}, 200 if server.state else 503)
        elif (self.command, *parts) == ("POST", "recurringruns"):
            server.recurring.append(json.loads(body))
            self._answer({**server.recurring[-1], "recurring_run_id": f"j{len(server.recurring) - 1}"})
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
            made = {"pipeline_id": query["pipelineid"], "pipeline_version_id": f"v{len(versions)}", "display_name": query["name"],
                    "description": query.get("description", "")}
            versions[made["pipeline_version_id"]] = made
            form: Message = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\n\n".encode() + body)
            package: bytes = next(iter(form.get_payload())).get_payload(decode=True)  # type: ignore[union-attr, arg-type, assignment]
            server.uploads[query["name"]] = package.decode()
            assert "pipelineInfo" in server.uploads[query["name"]]
            self._answer(made)
        elif self.command == "GET" and url.path == "/":
            self._page()
        elif self.command == "GET":  # pipelines/<id>/versions, one a page
            found = list(server.versions[parts[1]].values())
            if query.get("sort_by") == "created_at desc":
                found.reverse()
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
