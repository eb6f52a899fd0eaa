"""The wire below a teacher: one deadline for everything, what was certainly not answered, kept connections, proxies."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedhelp_core.errors import ConfigError
from fedhelp_core.softlabels.http import Server
from fedhelp_core.softlabels.teachers import MaybeAnswered, NotAnswered
from tests.cluster.certificates import Authority

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NAME = "teacher.example"
Serve = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Listener:
    """Serves every connection with `serve`, in a thread of its own, and counts them."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._serve = serve
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def asks(self, **options: float) -> Server:
        return Server("teacher", f"http://127.0.0.1:{self.port}/v2", timeout=options.get("timeout", 30))

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # a client that gave up is what is tested
            self._serve(connection)


@pytest.fixture
def listen() -> Iterator[Callable[[Serve], Listener]]:
    with contextlib.ExitStack() as ends:
        def opened(serve: Serve) -> Listener:
            listener = Listener(serve)
            ends.callback(listener.close)
            return listener

        yield opened


def head_of(connection: socket.socket) -> bytes:
    """A request up to its empty line; b"" where the client has gone."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


def drip(start: bytes, again: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(start)
        while True:
            connection.sendall(again)
            time.sleep(0.01)

    return serve


def get(server: Server, headers: dict[str, str] | None = None) -> bytes:
    return server.exchange("GET", "/x", headers or {}, max_bytes=1000).body


@pytest.mark.parametrize(("start", "again"), [
    (b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"a"),
], ids=["a header", "continuations", "a chunk's extension", "the body"])
def test_an_answer_that_never_stops_dripping_ends_at_the_deadline(listen: Callable[[Serve], Listener], start: bytes, again: bytes) -> None:
    with pytest.raises(MaybeAnswered, match=r"/v2/x gave no whole answer \(timed out\)"):
        get(listen(drip(start, again)).asks(timeout=0.5))


@pytest.mark.parametrize("reset", [True, False], ids=["closed", "never read"])
def test_a_request_that_was_not_taken_to_its_end_was_certainly_not_answered(listen: Callable[[Serve], Listener], reset: bool) -> None:
    given_up = threading.Event()

    def half(connection: socket.socket) -> None:
        connection.recv(1000)
        if not reset:
            given_up.wait(30)

    body = bytes(64 * 2**20)  # more than any socket's buffers
    with pytest.raises(NotAnswered, match="/v2/x did not take the request"):
        listen(half).asks(timeout=30 if reset else 0.5).exchange("POST", "/x", {}, body, max_bytes=1000)
    given_up.set()


def test_a_refusal_that_comes_before_the_request_is_sent_is_read(listen: Callable[[Serve], Listener]) -> None:
    def refusing(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**20):
            pass

    answer = listen(refusing).asks().exchange("POST", "/x", {}, bytes(8 * 2**20), max_bytes=1000)
    assert answer.status == 413


def test_one_connection_serves_one_question_after_another_and_threads_have_their_own(listen: Callable[[Serve], Listener]) -> None:
    together = threading.Barrier(3)

    def serve(connection: socket.socket) -> None:
        while head := head_of(connection):
            if b"X-Together" in head:
                together.wait(30)
            connection.sendall(OK)

    listener = listen(serve)
    server = listener.asks()
    assert [get(server) for _ in range(5)] == [b"ok"] * 5
    assert listener.connections == 1
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: get(server, {"X-Together": "yes"}), range(3))) == [b"ok"] * 3
    assert listener.connections == 3


def test_a_cookie_is_not_sent_back(listen: Callable[[Serve], Listener]) -> None:
    heads = []

    def serve(connection: socket.socket) -> None:
        while head := head_of(connection):
            heads.append(head)
            connection.sendall(OK.replace(b"\r\n", b"\r\nSet-Cookie: replica=1\r\n", 1))

    server = listen(serve).asks()
    get(server)
    get(server)
    assert [b"ookie" in head for head in heads] == [False, False]


class TestProxy:
    def test_http_goes_through_the_proxy_of_the_environment_with_its_login(
        self, listen: Callable[[Serve], Listener], monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        heads = []

        def forwarding(connection: socket.socket) -> None:
            heads.append(head_of(connection))
            connection.sendall(OK)

        monkeypatch.setenv("HTTP_PROXY", f"http://hub:p%40ss@127.0.0.1:{listen(forwarding).port}")
        assert get(Server("teacher", f"http://{NAME}/v2", timeout=30)) == b"ok"
        first, *fields = heads[0].decode().splitlines()
        assert first == f"GET http://{NAME}/v2/x HTTP/1.1"
        assert f"Host: {NAME}" in fields
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'hub:p@ss').decode()}" in fields

    def test_a_host_of_no_proxy_is_asked_directly(self, listen: Callable[[Serve], Listener], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "other.example,127.0.0.1")

        def serve(connection: socket.socket) -> None:
            head_of(connection)
            connection.sendall(OK)

        assert get(listen(serve).asks()) == b"ok"

    def test_https_goes_through_a_tunnel_and_the_certificate_is_the_servers(
        self, listen: Callable[[Serve], Listener], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    ) -> None:
        authority = Authority(tmp_path)
        pair = authority.server("teacher", [NAME])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        heads = []

        def tunnel(connection: socket.socket) -> None:
            heads.append(head_of(connection))
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            with context.wrap_socket(connection, server_side=True) as secure:
                while head := head_of(secure):
                    heads.append(head)
                    secure.sendall(OK)

        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listen(tunnel).port}")
        server = Server("teacher", f"https://{NAME}/v2", timeout=30, ca_file=authority.pair.certificate)
        assert (get(server), get(server)) == (b"ok", b"ok")
        assert [head.split(b"\r\n")[0] for head in heads] == [f"CONNECT {NAME}:443 HTTP/1.1".encode(), *[b"GET /v2/x HTTP/1.1"] * 2]

    @pytest.mark.parametrize(("said", "words"), [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", r"was not reached \(407 Proxy Authentication Required\)"),
        (b"HTTP/1.1 200 Connected\r\n\r\n", "was not reached"),
        (b"", "did not take the request"),
    ], ids=["refused", "the server hangs up", "the proxy hangs up"])
    def test_a_tunnel_that_is_not_made_leaves_the_question_certainly_unanswered(
        self, listen: Callable[[Serve], Listener], monkeypatch: pytest.MonkeyPatch, said: bytes, words: str,
    ) -> None:
        def failing(connection: socket.socket) -> None:
            head_of(connection)
            connection.sendall(said)

        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listen(failing).port}")
        with pytest.raises(NotAnswered, match=words):
            get(Server("teacher", f"https://{NAME}/v2", timeout=30))

    @pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "https://127.0.0.1:1080", "http://"])
    def test_a_proxy_of_another_kind_is_a_config_error_that_keeps_its_address_to_itself(self, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ConfigError, match="the proxy that the environment names for http is no http://host:port; correct it") as caught:
            Server("teacher", f"http://{NAME}/v2", timeout=30)
        assert "1080" not in str(caught.value)
