"""A real HTTP server that answers everything in one way: login pages, refusals, clocks. Used by tests of clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from typing import Any

LOGIN_PAGE = b"<!DOCTYPE html><html><head><meta charset=utf-8><title>Log in to dex</title></head><body>Who are you?</body></html>"


@contextmanager
def answering(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, clock_ahead: float = 0.0) -> Iterator[str]:
    """The address of a server that gives this answer to every request; its clock is `clock_ahead` seconds ahead."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response_only(status)
            for name, value in {"Date": formatdate(time() + clock_ahead, usegmt=True), **(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
