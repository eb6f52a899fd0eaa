"""Which proxy leads where: the one rule, and real clients that keep to it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedhelp_core import telemetry
from fedhelp_core.errors import FedHelpError
from fedhelp_core.proxies import is_direct, proxies_for, proxy_for, tell_libraries
from fedhelp_core.softlabels.http import Server
from fedhelp_core.softlabels.teachers import NotAnswered
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.doctor import look_at_clock

_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "KUBERNETES_SERVICE_HOST")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(("no_proxy", "url", "direct"), [
    ("10.0.0.0/8", "http://10.1.2.3:9000/x", True),
    ("10.0.0.0/8", "http://11.1.2.3/", False),
    ("10.1.2.3/8", "http://10.9.9.9/", True),  # a range that is written with an address of it
    ("10.1.2.3", "https://10.1.2.3/", True),
    ("10.1.2.3", "https://10.1.2.30/", False),
    ("fd00::/8", "http://[fd00::1]:9000/", True),
    ("[fd00::1]:9000", "http://[fd00::1]:9000/", True),
    ("[fd00::1]:9000", "http://[fd00::1]:9001/", False),
    ("10.0.0.0/8", "http://hub.example/", False),  # names are not looked up
    ("*", "https://anything.example/", True),
    ("a.example, hub.example", "https://hub.example/", True),
    ("hub.example", "https://s3.HUB.example/", True),
    (".hub.example", "https://s3.hub.example/", True),
    ("*.hub.example", "https://s3.hub.example/", True),
    ("hub.example.", "https://hub.example/", True),
    ("hub.example", "https://otherhub.example/", False),  # a suffix of letters is no suffix of names
    ("hub.example:9000", "http://hub.example:9000/", True),
    ("hub.example:9000", "http://hub.example/", False),
    ("hub.example:443", "https://hub.example/", True),
    ("localhost 127.0.0.0/8", "http://127.0.0.7/", True),
    ("", "http://127.0.0.1/", False),
    ("10.0.0.0/99, :, [, /8, %", "http://10.1.2.3/", False),
])
def test_no_proxy_names_hosts_suffixes_ports_and_ranges(monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert is_direct(url) == direct
    assert proxy_for(url) == (None if direct else "http://proxy.example:3128")


def test_without_a_proxy_there_is_none() -> None:
    assert proxies_for("https://hub.example") == {}


def test_a_pods_own_api_server_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert proxy_for("https://10.96.0.1:443") is None
    assert proxy_for("https://10.96.0.2:443") == "http://proxy.example:3128"


def test_libraries_that_read_the_environment_alone_learn_of_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setenv("NO_PROXY", "fd00::/8,10.0.0.0/8")
    monkeypatch.setenv("no_proxy", "fd00::/8,10.0.0.0/8")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert requests.utils.get_environ_proxies("http://[fd00::1]:5000/") != {}  # requests alone knows no IPv6 ranges
    tell_libraries("http://[fd00::1]:5000/")
    assert requests.utils.get_environ_proxies("http://[fd00::1]:5000/") == {}
    assert os.environ["NO_PROXY"] == "fd00::/8,10.0.0.0/8,fd00::1"


class Proxy:
    """Counts what it is asked for, and refuses all of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                proxy.asked.append(self.path)
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_CONNECT = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def closed_port() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        return f"127.0.0.2:{free.getsockname()[1]}"


def ask_everybody(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hub")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    teacher = Server("teacher", f"http://{address}", timeout=5)
    for ask in (
        lambda: open_store("s3://bucket", endpoint_url=f"http://{address}").list(""),
        lambda: telemetry.push(address, "check", "run-1"),
        lambda: list(look_at_clock("s3://bucket", f"http://{address}/clock")),
        lambda: teacher.exchange("GET", "/v2", {}, max_bytes=100),
    ):
        with suppress(FedHelpError, NotAnswered):
            ask()


def test_every_client_asks_the_proxy_and_none_does_for_an_address_in_a_range(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, closed_port: str,
) -> None:
    ask_everybody(closed_port, monkeypatch)
    asked = {path.partition(closed_port)[2].partition("?")[0] for path in proxy.asked}
    assert asked == {"/bucket", "/metrics/job/check/run/run-1", "/clock", "/v2"}
    proxy.asked.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    ask_everybody(closed_port, monkeypatch)
    assert proxy.asked == []
