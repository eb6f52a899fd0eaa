"""One HTTP server asked from several threads: connections kept open, every answer bounded in time and size, no redirects.

Called by `openinference`. httpcore, the transport of httpx, speaks HTTP; a network layer of ours gives it one deadline for a
whole exchange, since its own timeouts (and httpx's) hold for one read or write alone. What certainly was not answered (not all
sent) is told apart from what may have been (all sent, no whole answer): the ledger counts the latter as money that may be spent.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import httpcore

from fedhelp_core.errors import ConfigError
from fedhelp_core.proxies import proxy_for
from fedhelp_core.softlabels.teachers import MaybeAnswered, NotAnswered

_LONGEST_IDLE = 2.0  # seconds; servers close idle connections after 5 s or more, and a closed one looks like a lost answer
_SENT_AT_ONCE = 256 * 1024  # bytes; httpcore copies what one write leaves over, so a large body is cut before
_FAULTS = (
    httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError, UnicodeError)  # UnicodeError: no host's name
_NOT_REACHED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError, UnicodeError)


class TooLong(Exception):
    """The answer is longer than what the caller takes."""


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By name in lower case."""
    body: bytes = field(repr=False)


class Server:
    """The server at `url`, whose path is the base of every request's.

    Proxies are those that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name, by the one rule of proxies.py; an http:// proxy alone.

    Args:
        name: Who this is, for messages.
        url: http(s)://host[:port]/path.
        timeout: Seconds for one whole exchange.
        ca_file: PEM file of an authority to trust instead of the system's.

    Raises:
        ConfigError: the URL, the file or the environment's proxy cannot be used.
    """

    def __init__(self, name: str, url: str, *, timeout: float, ca_file: Path | None = None) -> None:
        self._who = f"teacher {name!r}"
        self._parts = checked_address(name, url)
        self._timeout = timeout
        self._pool = httpcore.ConnectionPool(
            ssl_context=_trust(name, ca_file) if self._parts.scheme == "https" else None, proxy=_proxy_for(name, self._parts),
            max_connections=None, keepalive_expiry=_LONGEST_IDLE, network_backend=_Network())
        weakref.finalize(self, self._pool.close)

    def exchange(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None, *, max_bytes: int) -> Response:
        """The answer to one request, whatever its status.

        Raises:
            NotAnswered: not reached, or the request was not accepted to its end.
            MaybeAnswered: it was sent, and no whole answer came.
            TooLong: the answer is longer than `max_bytes`.
            ConfigError: the server's certificate is not trusted.
        """
        asked, deadline = _Asked(), time.monotonic() + self._timeout
        url = f"{self._parts.scheme}://{self._parts.netloc}{self._parts.path.rstrip('/')}{path}"
        everything = [*{"Host": self._parts.netloc, "Accept-Encoding": "identity", **headers}.items()]
        moments = dict.fromkeys(("connect", "read", "write"), deadline)  # `_Network` reads timeouts as moments
        try:
            with self._pool.stream(method, url, headers=everything, content=body, extensions={"timeout": moments, "trace": asked}) as answer:
                found = {key.decode("ascii").lower(): value.decode("latin-1") for key, value in answer.headers}
                return Response(answer.status, found, self._body(answer, path, found.get("content-length"), max_bytes))
        except _FAULTS as e:
            raise self._fault(e, path, asked.sent) from e

    def _body(self, answer: httpcore.Response, path: str, length: str | None, max_bytes: int) -> bytes:
        body = bytearray()
        if length is not None and int(length) > max_bytes:
            raise TooLong
        try:
            for piece in answer.iter_stream():
                body += piece
                if len(body) > max_bytes:
                    raise TooLong
        except httpcore.RemoteProtocolError as e:
            if length is None:
                raise
            missing = int(length) - len(body)
            raise MaybeAnswered(f"{self._who}: the answer of {self._shown(path)} broke off {missing} bytes early; try again") from e
        return bytes(body)

    def _fault(self, e: Exception, path: str, sent: bool) -> Exception:
        """What to say of an exchange that ended in `e`."""
        said = (str(e).splitlines() or [""])[0][:200] or type(e).__name__
        cause = e.args[0] if e.args else None  # httpcore gives what it maps as the argument, and hides it as the cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{self._who}: the certificate of {self._parts.hostname} is not trusted ({cause.verify_message}); give its authority as ca_file")
        if isinstance(e, _NOT_REACHED):
            return NotAnswered(f"{self._who}: {self._shown('')} was not reached ({said}); try again later")
        if not sent:
            return NotAnswered(f"{self._who}: {self._shown(path)} did not take the request ({said}); try again later")
        return MaybeAnswered(f"{self._who}: {self._shown(path)} gave no whole answer ({said}); try again later")

    def _shown(self, path: str) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}{self._parts.path}{path}"


class _Asked:
    """Follows one exchange, of which httpcore tells every step: whether all of the request was handed over."""

    def __init__(self) -> None:
        self.sent = False
        self._to_proxy = False

    def __call__(self, step: str, about: Mapping[str, Any]) -> None:
        if step == "http11.send_request_body.started":
            self._to_proxy = about["request"].method == b"CONNECT"
        elif step == "http11.send_request_body.complete":
            self.sent = not self._to_proxy


class _Network(httpcore.NetworkBackend):
    """httpcore's sockets, with every wait ending at one moment, however slowly bytes drip in."""

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *options: Any, **more: Any) -> httpcore.NetworkStream:
        connected = httpcore.SyncBackend().connect_tcp(host, port, _left(timeout, httpcore.ConnectTimeout), *options, **more)
        return _Stream(connected)


class _Stream(httpcore.NetworkStream):
    def __init__(self, raw: httpcore.NetworkStream) -> None:
        self._raw = raw
        self.close = raw.close  # type: ignore[method-assign]
        self.get_extra_info = raw.get_extra_info  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._raw.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SENT_AT_ONCE):
            self._raw.write(buffer[start : start + _SENT_AT_ONCE], _left(timeout, httpcore.WriteTimeout))

    def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None) -> httpcore.NetworkStream:
        return _Stream(self._raw.start_tls(ssl_context, server_hostname, _left(timeout, httpcore.ConnectTimeout)))


def _left(moment: float | None, late: type[httpcore.TimeoutException]) -> float:
    """Seconds until `moment`."""
    assert moment is not None, "every exchange has a deadline"
    left = moment - time.monotonic()
    if left <= 0:
        raise late("timed out")
    return left


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
        raise ConfigError(f"teacher {name!r}: ca_file {ca_file} cannot be used ({e}); a PEM file of certificates expected") from e


def _proxy_for(name: str, parts: SplitResult) -> httpcore.Proxy | None:
    """What HTTP(S)_PROXY and NO_PROXY say about this host."""
    found = proxy_for(parts.geturl())
    if found is None:
        return None
    proxy = urlsplit(found)
    if proxy.scheme != "http" or not proxy.hostname:
        raise ConfigError(f"teacher {name!r}: the proxy that the environment names for {parts.scheme} is no http://host:port; correct it")
    login = None if proxy.username is None else (unquote(proxy.username).encode(), unquote(proxy.password or "").encode())
    return httpcore.Proxy(f"http://{proxy.netloc.rpartition('@')[2]}", auth=login)
