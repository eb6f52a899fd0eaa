"""One HTTP server asked from several threads: connections kept open, every answer bounded in time and size, no redirects.

Called by `openinference`. Standard library only. It tells apart what certainly was not answered (not connected, not all
sent) from what may have been (all sent, no whole answer): the ledger counts the latter as money that may be spent.
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from fedhelp_core.errors import ConfigError
from fedhelp_core.softlabels.teachers import MaybeAnswered, NotAnswered

_LONGEST_IDLE = 2.0  # seconds; servers close idle connections after 5 s or more, and a closed one looks like a lost answer


class TooLong(Exception):
    """The answer is longer than what the caller takes."""


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Server:
    """The server at `url`, whose path is the base of every request's.

    Args:
        name: Who this is, for messages.
        url: http(s)://host[:port]/path.
        timeout: Seconds for one whole exchange.
        ca_file: PEM file of an authority to trust instead of the system's.

    Raises:
        ConfigError: the URL or the file cannot be used.
    """

    def __init__(self, name: str, url: str, *, timeout: float, ca_file: Path | None = None) -> None:
        self._name = name
        self._parts = checked_address(name, url)
        self._timeout = timeout
        self._tls = _trust(name, ca_file) if self._parts.scheme == "https" else None
        self._proxy = _proxy_for(name, self._parts)
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._idle)

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None, *, max_bytes: int) -> Response:
        """The answer to one request, whatever its status.

        Raises:
            NotAnswered: not reached, or the request was not accepted to its end.
            MaybeAnswered: it was sent, and no whole answer came.
            TooLong: the answer is longer than `max_bytes`.
        """
        deadline = time.monotonic() + self._timeout
        connection = self._idle_connection()
        try:
            if connection is None:
                connection = self._connect(deadline)
            else:
                connection.sock.until(deadline)  # type: ignore[union-attr]
            self._send(connection, method, path, headers, body)
            response = self._receive(connection, path, max_bytes)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._keep(connection, response)
        return response

    def _connect(self, deadline: float) -> http.client.HTTPConnection:
        """A connection of which every wait ends at the deadline."""
        host, port = self._parts.hostname or "", self._parts.port
        via = self._proxy
        try:
            first = (via.hostname or "", via.port or 80) if via is not None else (host, port or (443 if self._tls else 80))
            connection = http.client.HTTPConnection(*first, timeout=self._timeout)
            if via is not None and self._tls is not None:
                connection.set_tunnel(host, port or 443, headers=_proxy_login(via))
            connection.connect()
            raw: Any = connection.sock
            if self._tls is not None:
                raw.settimeout(max(0.001, deadline - time.monotonic()))
                raw = self._tls.wrap_socket(raw, server_hostname=host)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = _DeadlineSocket(raw, deadline)
        except ssl.SSLCertVerificationError as e:
            raise ConfigError(
                f"teacher {self._name!r}: the certificate of {host} is not trusted ({e.verify_message}); give its authority as ca_file") from e
        except (OSError, HTTPException, UnicodeError) as e:
            raise NotAnswered(f"teacher {self._name!r}: {self._shown('')} was not reached ({_said(e)}); try again later") from e
        return connection

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> None:
        target = self._parts.path.rstrip("/") + path or "/"
        everywhere = {"Host": self._parts.netloc, "Accept-Encoding": "identity"}
        if self._proxy is not None and self._tls is None:
            target = f"http://{self._parts.netloc}{target}"
            everywhere |= _proxy_login(self._proxy)
        try:
            connection.request(method, target, body=body, headers={**everywhere, **headers})
        except (OSError, HTTPException) as e:
            raise NotAnswered(f"teacher {self._name!r}: {self._shown(path)} did not take the request ({_said(e)}); try again later") from e

    def _receive(self, connection: http.client.HTTPConnection, path: str, max_bytes: int) -> Response:
        try:
            with connection.getresponse() as answer:
                if answer.length is not None and answer.length > max_bytes:
                    raise TooLong
                body = answer.read(max_bytes + 1)
                missing = answer.length
        except (OSError, HTTPException) as e:
            raise MaybeAnswered(f"teacher {self._name!r}: {self._shown(path)} gave no whole answer ({_said(e)}); try again later") from e
        if len(body) > max_bytes:
            raise TooLong
        if missing:
            raise MaybeAnswered(f"teacher {self._name!r}: the answer of {self._shown(path)} broke off {missing} bytes early; try again")
        return Response(answer.status, {key.lower(): value for key, value in answer.headers.items()}, body)

    def _idle_connection(self) -> http.client.HTTPConnection | None:
        with self._lock:
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < _LONGEST_IDLE:
                    return connection
                connection.close()
        return None

    def _keep(self, connection: http.client.HTTPConnection, response: Response) -> None:
        if connection.sock is None or response.headers.get("connection", "").lower() == "close":
            connection.close()
            return
        with self._lock:
            self._idle.append((time.monotonic(), connection))

    def _shown(self, path: str) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}{self._parts.path}{path}"


class _DeadlineSocket:
    """What http.client uses of a socket, with every wait ending at one moment, however slowly bytes drip in.

    As with a real socket, closing it while an answer is read from it takes effect when that is closed too.
    """

    def __init__(self, raw: Any, deadline: float) -> None:
        self._raw = raw
        self._deadline = deadline
        self._readers = 0
        self._closed = False

    def until(self, deadline: float) -> None:
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(self._remaining())
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        self._readers += 1
        return io.BufferedReader(_DeadlineReader(self), 64 * 1024)

    def recv_into(self, buffer: Any) -> int:
        self._raw.settimeout(self._remaining())
        return int(self._raw.recv_into(buffer))

    def close(self) -> None:
        self._closed = True
        if not self._readers:
            self._raw.close()

    def reader_closed(self) -> None:
        self._readers -= 1
        if self._closed:
            self.close()

    def _remaining(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _DeadlineReader(io.RawIOBase):
    def __init__(self, source: _DeadlineSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._source.reader_closed()
        super().close()


def _end(idle: list[tuple[float, http.client.HTTPConnection]]) -> None:
    """Close what is open to a server that nobody asks any more."""
    for _, connection in idle:
        connection.close()


def checked_address(name: str, url: str) -> SplitResult:
    """The parts of `url`.

    Raises:
        ConfigError: it is no address, or carries a query.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as e:
        raise ConfigError(f"teacher {name!r}: uri {url!r} is not an address ({e})") from e
    if not usable or parts.query or parts.fragment or not url.isascii() or any(c.isspace() for c in url):
        raise ConfigError(f"teacher {name!r}: uri {url!r} is not an address; http(s)://host[:port]/path expected")
    return parts


def _trust(name: str, ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"teacher {name!r}: ca_file {ca_file} cannot be used ({_said(e)}); a PEM file of certificates expected") from e


def _proxy_for(name: str, parts: SplitResult) -> SplitResult | None:
    """What HTTP(S)_PROXY and NO_PROXY say about this host."""
    found = urllib.request.getproxies().get(parts.scheme)
    if not found or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ConfigError(f"teacher {name!r}: the proxy that the environment names for {parts.scheme} is no http://host:port; correct it")
    return proxy


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _said(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:200] or type(e).__name__
