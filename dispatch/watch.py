"""All watches on one API server, however many namespaces, in one event loop.

The hub's account may list and watch in the silos' own namespaces only, so a watch per namespace is the rule; where the
account may do so in all namespaces, one watch serves them all. Either way a silo costs one listing and one open connection,
and nothing while nothing happens. A watch that ends (the server's choice, an outage, 410 Gone) goes on where it was, or
lists anew. Used by remote.py.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from fedhelp_core.errors import ClusterUnavailable, ConfigError
from fedhelp_dispatch.refusals import ApiRefusal

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_LIFETIME = (1500, 1800)  # seconds that the server keeps a watch; spread, so that they do not all begin anew at once
_PAUSES = (0.5, 15.0)  # seconds between attempts: from, doubling, up to
_UNAUTHORIZED, _GONE = 401, 410
_UNREACHABLE = (ClusterUnavailable, ConfigError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""No answer, or one that no API server gives, whatever it raises when it is read: RecursionError is a RuntimeError."""


class Handler(Protocol):
    """Who is told. All calls come from the event loop and must return at once."""

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        """Everything that is there now."""

    def reached(self, namespace: str | None) -> None:
        """The watch lives: when it begins, and with every event."""

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        """ADDED, MODIFIED or DELETED."""

    def refused(self, namespace: str | None, refusal: ApiRefusal) -> None:
        """The server answers, but refuses; it is asked again later."""

    def unreachable(self, namespace: str | None, message: str) -> None:
        """No answer; tried again."""


class Tasks:
    """Coroutines that run beside whoever started them, and are kept: the event loop alone would forget them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it, in the running loop."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def cancel(self) -> None:
        """End all of them."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Watches:
    """The watches of one kind of object on one API server; `follow` a namespace and the handler learns of every change in it.

    `path`: of the objects in one namespace, or in all (None); `selector`: the label that they carry.
    """

    def __init__(self, cluster: Cluster, path: Callable[[str | None], str], selector: str, handler: Handler) -> None:
        self._cluster = cluster
        self._path = path
        self._query = {"labelSelector": selector}
        self._handler = handler
        self._deciding = asyncio.Lock()
        self._everywhere: bool | None = None  # None: one namespace so far, and no need to know
        self._followed: set[str] = set()
        self._tasks = Tasks()

    async def follow(self, namespace: str) -> None:
        """Watch `namespace` from now on; a second call for it does nothing."""
        async with self._deciding:
            if namespace in self._followed:
                return
            self._followed.add(namespace)
            if len(self._followed) == 2:
                self._everywhere = await self._may_watch_everywhere()
                if self._everywhere:
                    await self.close()
                    self._tasks.start(self._keep_watching(None))
            if not self._everywhere:
                self._tasks.start(self._keep_watching(namespace))

    @property
    def connections(self) -> int:
        """How many watches are kept."""
        return len(self._tasks)

    async def close(self) -> None:
        """End all watches."""
        await self._tasks.cancel()

    async def _may_watch_everywhere(self) -> bool:
        try:
            await self._cluster.call("GET", self._path(None), query={**self._query, "limit": "1"})
        except (ApiRefusal, *_UNREACHABLE):
            return False
        return True

    async def _keep_watching(self, namespace: str | None) -> None:
        """Until cancelled."""
        version: str | None = None
        pause = _PAUSES[0]
        while True:
            try:
                if version is None:
                    version = await self._list(namespace)
                async with aclosing(self._events(namespace, version)) as events:
                    async for seen in events:
                        version, pause = seen, _PAUSES[0]
                        self._handler.reached(namespace)
                continue
            except ApiRefusal as e:
                if e.status == _GONE:
                    version = None
                elif e.status != _UNAUTHORIZED or not await self._cluster.renew():
                    self._handler.refused(namespace, e)
            except _UNREACHABLE as e:
                self._handler.unreachable(namespace, str(e.__cause__ or e) or type(e).__name__)
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(_PAUSES[1], pause * 2)

    async def _list(self, namespace: str | None) -> str:
        answer = await self._cluster.call("GET", self._path(namespace), query=self._query)
        version = str(answer["metadata"]["resourceVersion"])
        self._handler.listed(namespace, answer.get("items") or [])
        return version

    async def _events(self, namespace: str | None, version: str) -> AsyncGenerator[str, None]:
        """The resource version after each event, once the handler knows the event."""
        query = {
            **self._query, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": str(random.randint(*_LIFETIME))}
        async with aclosing(self._cluster.lines(self._path(namespace), query)) as lines:
            async for line in lines:
                if not line:
                    yield version
                    continue
                event = json.loads(line)
                found = event["object"]
                if event["type"] == "ERROR":
                    raise self._cluster.refusal(int(found.get("code", 500)), str(found.get("message", "")))
                if event["type"] != "BOOKMARK":
                    self._handler.changed(event["type"], found)
                version = str(found["metadata"]["resourceVersion"])
                yield version
