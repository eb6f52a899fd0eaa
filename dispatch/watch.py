"""All watches on one API server, however many namespaces, in one thread.

The hub's account may list and watch in the silos' own namespaces only, so a watch per namespace is the rule; where the
account may do so in all namespaces, one watch serves them all. Either way a silo costs one listing and one open connection,
and nothing while nothing happens. A watch that ends (the server's choice, an outage, 410 Gone) goes on where it was, or
lists anew. asyncio and HTTP/1.1 by hand, since the `kubernetes` package needs a thread per watch. Used by remote.py.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

_LIFETIME = (1500, 1800)  # seconds that the server keeps a watch; spread, so that they do not all begin anew at once
_SILENCE = 180.0  # seconds; a live watch brings a bookmark every minute
_CONNECT = 15.0  # seconds
_PAUSES = (0.5, 15.0)  # seconds between attempts: from, doubling, up to
_AT_ONCE = 16  # connections being opened
_LARGEST = 256 * 2**20  # bytes of one answer
_GONE = 410


@dataclass(frozen=True)
class Endpoint:
    """How to reach an API server, and as whom."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    server_name: str | None
    prefix: str
    """Path before /api, where the server is behind something; mostly ''."""
    headers: dict[str, str]
    proxy: tuple[str, int] | None = None


@dataclass(frozen=True)
class Collection:
    """What is watched: the objects of one kind that carry a label, e.g. batch/v1 jobs."""

    group: str
    resource: str
    selector: str

    def path(self, namespace: str | None) -> str:
        """Of one namespace, or of all."""
        return f"/apis/{self.group}/{self.resource}" if namespace is None else f"/apis/{self.group}/namespaces/{namespace}/{self.resource}"


class Handler(Protocol):
    """Who is told. All calls come from the watching thread and must return at once."""

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        """Everything that is there now."""

    def reached(self, namespace: str | None) -> None:
        """The watch lives: when it begins, and with every event."""

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        """ADDED, MODIFIED or DELETED."""

    def refused(self, namespace: str | None, status: int, message: str) -> None:
        """The server answers, but refuses; it is asked again later."""

    def unreachable(self, namespace: str | None, message: str) -> None:
        """No answer; tried again."""


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Watches:
    """The watches of one collection on one API server; `follow` a namespace and the handler learns of every change in it."""

    def __init__(self, endpoint: Callable[[], Endpoint], collection: Collection, handler: Handler) -> None:
        self._endpoint = endpoint
        self._collection = collection
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._opening = asyncio.Semaphore(_AT_ONCE)
        self._deciding = asyncio.Lock()
        self._everywhere: bool | None = None  # None: one namespace so far, and no need to know
        self._followed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=f"watch-{collection.resource}")
        self._thread.start()

    def follow(self, namespace: str) -> None:
        """Watch `namespace` from now on; a second call for it does nothing."""
        asyncio.run_coroutine_threadsafe(self._follow(namespace), self._loop)

    @property
    def connections(self) -> int:
        """How many watches are kept."""
        return len(self._tasks)

    def close(self) -> None:
        """End all watches."""
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, namespace: str) -> None:
        async with self._deciding:
            if namespace in self._followed:
                return
            self._followed.add(namespace)
            if len(self._followed) == 2:
                self._everywhere = await self._may_watch_everywhere()
                if self._everywhere:
                    await self._cancel_all()
                    self._start(self._keep_watching(None))
            if not self._everywhere:
                self._start(self._keep_watching(namespace))

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _may_watch_everywhere(self) -> bool:
        try:
            async with _Connection(self._endpoint(), self._opening) as connection:
                await connection.json(self._url(None, limit="1"))
        except (_Refused, *_UNREACHABLE):
            return False
        return True

    async def _keep_watching(self, namespace: str | None) -> None:
        """Until cancelled."""
        version: str | None = None
        pause = _PAUSES[0]
        while True:
            try:
                async with _Connection(self._endpoint(), self._opening) as connection:
                    if version is None:
                        version = await self._list(connection, namespace)
                    async for seen in self._events(connection, namespace, version):
                        version, pause = seen, _PAUSES[0]
                        self._handler.reached(namespace)
                continue
            except _Refused as e:
                if e.status == _GONE:
                    version = None
                else:
                    self._handler.refused(namespace, e.status, e.message)
            except _UNREACHABLE as e:
                self._handler.unreachable(namespace, str(e) or type(e).__name__)
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(_PAUSES[1], pause * 2)

    async def _list(self, connection: _Connection, namespace: str | None) -> str:
        answer = await connection.json(self._url(namespace))
        self._handler.listed(namespace, answer.get("items") or [])
        return str(answer["metadata"]["resourceVersion"])

    async def _events(self, connection: _Connection, namespace: str | None, version: str) -> AsyncIterator[str]:
        """The resource version after each event, once the handler knows the event."""
        url = self._url(
            namespace, watch="true", allowWatchBookmarks="true", resourceVersion=version, timeoutSeconds=str(random.randint(*_LIFETIME)))
        async for line in connection.lines(url):
            if not line:
                yield version
                continue
            event = json.loads(line)
            found = event["object"]
            if event["type"] == "ERROR":
                raise _Refused(int(found.get("code", 500)), str(found.get("message", "")))
            if event["type"] != "BOOKMARK":
                self._handler.changed(event["type"], found)
            yield str(found["metadata"]["resourceVersion"])

    def _url(self, namespace: str | None, **query: str) -> str:
        return f"{self._collection.path(namespace)}?{urlencode({'labelSelector': self._collection.selector, **query})}"


class _Connection:
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, endpoint: Endpoint, opening: asyncio.Semaphore) -> None:
        self._endpoint = endpoint
        self._opening = opening
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> _Connection:
        end = self._endpoint
        async with self._opening, asyncio.timeout(_CONNECT):
            if end.proxy is None:
                self._reader, self._writer = await asyncio.open_connection(
                    end.host, end.port, ssl=end.tls, server_hostname=end.server_name if end.tls else None)
            else:
                await self._open_through(end.proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with suppress(*_UNREACHABLE):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()

    async def _open_through(self, proxy: tuple[str, int]) -> None:
        """A tunnel (CONNECT), as a kubeconfig's proxy-url asks."""
        end = self._endpoint
        self._reader, self._writer = await asyncio.open_connection(*proxy)
        self._writer.write(f"CONNECT {end.host}:{end.port} HTTP/1.1\r\nHost: {end.host}:{end.port}\r\n\r\n".encode())
        status, _ = await self._head()
        if status != 200:
            raise OSError(f"proxy {proxy[0]}:{proxy[1]} answered {status} to CONNECT")
        if end.tls is not None:
            await self._writer.start_tls(end.tls, server_hostname=end.server_name)

    async def json(self, url: str) -> dict[str, Any]:
        """A whole answer."""
        async with asyncio.timeout(60):
            chunks = [chunk async for chunk in self._get(url)]
        answer: dict[str, Any] = json.loads(b"".join(chunks))
        return answer

    async def lines(self, url: str) -> AsyncIterator[bytes]:
        """A streamed answer, line by line; first an empty one, when the server has accepted the request."""
        rest = b""
        async for chunk in self._get(url):
            if not chunk:
                yield b""
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line:
                    yield line

    async def _get(self, url: str) -> AsyncIterator[bytes]:
        end = self._endpoint
        headers = {"Host": f"{end.host}:{end.port}", "Accept": "application/json", "User-Agent": "fedhelp", **end.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._writer.write(f"GET {end.prefix}{url} HTTP/1.1\r\n{head}\r\n".encode())
        await self._writer.drain()
        status, answered = await self._head()
        body = self._body(answered)
        if status != 200:
            text = b"".join([chunk async for chunk in body])
            raise _Refused(status, _message(text))
        yield b""
        async for chunk in body:
            yield chunk

    async def _head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(_SILENCE):
            first = (await self._reader.readline()).split(b" ", 2)
            if len(first) < 2:
                raise OSError("the connection was closed before the answer")
            headers: dict[str, str] = {}
            while (line := (await self._reader.readline()).strip()):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
        return int(first[1]), headers

    async def _body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield await self._exactly(int(headers.get("content-length", "0")))
            return
        while True:
            async with asyncio.timeout(_SILENCE):
                size = int((await self._reader.readline()).split(b";")[0] or b"0", 16)
                chunk = await self._exactly(size + 2)
            if size == 0:
                return
            yield chunk[:-2]

    async def _exactly(self, size: int) -> bytes:
        if size > _LARGEST:
            raise OSError(f"an answer of {size} bytes")
        return await self._reader.readexactly(size)


_UNREACHABLE = (OSError, EOFError, TimeoutError, ssl.SSLError, ValueError, KeyError)  # the last two: an answer that is no API server's


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace")[:300]
