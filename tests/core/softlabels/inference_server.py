"""A little Open Inference Protocol server that answers as a test tells it to."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhelp_core.softlabels.openinference import OpenInferenceTeacher
from tests.core.softlabels.helpers import SIDE, answer_to, teacher_config

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body. Header X-Drip: seconds between two bytes of the body."""


class InferenceServer:
    """A little Open Inference Protocol server; `answer` makes (status, headers, body) of a request's headers and body."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.server_metadata: Any = {"name": "little", "extensions": []}
        self.model_metadata: Any = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]}]}
        self.answer: Callable[[Any, bytes], Answer] = lambda _, body: json_answer(answer_to(pixels_of(body)))
        self.gets: list[str] = []
        self.get_headers: list[Any] = []
        self.posts: list[tuple[Any, bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.gets.append(self.path)
                server.get_headers.append(self.headers)
                found = {"/v2": server.server_metadata, "/v2/models/derma": server.model_metadata, "/moved": server.model_metadata}.get(self.path)
                if isinstance(found, tuple):
                    self.reply(*found)
                elif found is None:
                    self.reply(404, {}, b"no such model")
                else:
                    self.reply(200, {}, found if isinstance(found, bytes) else json.dumps(found).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.posts.append((self.headers, body))
                self.reply(*server.answer(self.headers, body))

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(body))}
                for name, value in (length | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if "X-Drip" in headers:
                    for i in range(len(body)):
                        time.sleep(float(headers["X-Drip"]))
                        self.wfile.write(body[i : i + 1])
                else:
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Clients that time out or are killed are part of the tests."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}/v2/models/derma"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def teacher(self, **changes: Any) -> OpenInferenceTeacher:
        return OpenInferenceTeacher(teacher_config(**({"kind": "openinference", "uri": self.url} | changes)))


def json_answer(rows: Any) -> Answer:
    rows = np.asarray(rows)
    output = {"name": "scores", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return 200, {"Content-Type": "application/json"}, json.dumps({"model_name": "derma", "outputs": [output]}).encode()


def binary_answer(rows: NDArray[Any], datatype: str, *, said_bytes: int | None = None) -> Answer:
    raw = rows.tobytes()
    parameters = {"binary_data_size": len(raw) if said_bytes is None else said_bytes}
    head = json.dumps({"outputs": [{"name": "scores", "datatype": datatype, "shape": list(rows.shape), "parameters": parameters}]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(head))}, head + raw


def output_answer(**changes: Any) -> Callable[[Any, bytes], Answer]:
    """A JSON answer whose one output has fields replaced."""
    output = {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 1, 0]} | changes
    return lambda _headers, _body: (200, {}, json.dumps({"outputs": [output]}).encode())


def pixels_of(body: bytes) -> NDArray[np.uint8]:
    asked = json.loads(body)["inputs"][0]
    return np.asarray(asked["data"], np.uint8).reshape(asked["shape"])
