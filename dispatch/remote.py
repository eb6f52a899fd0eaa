"""Work that an API server keeps for us, whatever kind of object carries it: its lives, in one event loop.

lifecycle.py says what is to be done, create_and_delete.py sends the requests, watch.py sees what changes; this file feeds what
they answer back. Nothing here blocks whoever asks: looks answer from the last event. A server that is away is waited for.

Invariants: lives change in the loop's thread alone, and are values, so that any thread may read them; a dispatcher has one
piece of work at a time in each silo.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from fedhelp_core.errors import FedHelpError
from fedhelp_dispatch.carrier import Carrier, carrier_of
from fedhelp_dispatch.create_and_delete import Requests, failed_by, gone, seen
from fedhelp_dispatch.job import RUN_LABEL, SILO_LABEL, is_of, job_name
from fedhelp_dispatch.lifecycle import Action, Event, Life, Patience, State, step
from fedhelp_dispatch.refusals import ApiRefusal, refusal_error
from fedhelp_dispatch.request import Outcome, Waiting, Work, WorkRequest
from fedhelp_dispatch.watch import Tasks, Watches

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_CLOSE_WITHIN = 20.0  # seconds: Kubernetes gives a pod 30 between SIGTERM and SIGKILL
_DELETED = (State.ENDING, State.ENDED)
_DUE, _MISSED = Event(name="due"), Event(name="missed")
_STOP = Event(name="stop", outcome=Outcome(exit_code=None, reason="stopped"))


class EndedWork:
    """Work that could not even be asked for."""

    def __init__(self, error: FedHelpError) -> None:
        self._error = error

    def outcome(self) -> Outcome:
        """See request.Work."""
        return failed_by(self._error)

    def waiting(self) -> None:
        """It has ended."""

    def stop(self) -> None:
        """It has ended."""


class RemoteWork:
    """One object in a cluster."""

    def __init__(self, hub: _ClusterWork, request: WorkRequest) -> None:
        self._hub = hub
        self.request = request
        self.name = job_name(request)
        self.namespace = hub.carrier.namespace(request.entry)
        self.life = Life()
        self.timer: asyncio.TimerHandle | None = None

    def outcome(self) -> Outcome | None:
        """See request.Work."""
        life = self.life
        return life.outcome if life.state is State.ENDED else None

    def waiting(self) -> Waiting | None:
        """See request.Work."""
        waiting = self.life.waiting
        trouble = self._hub.trouble_in(self.namespace)
        return Waiting(reason=trouble) if waiting is not None and trouble is not None else waiting

    def stop(self) -> None:
        """Delete it, its pods first."""
        if not self._hub.loop.is_closed():  # else nobody waits for it any more
            self._hub.loop.call_soon_threadsafe(self._hub.happened, self, _STOP)


class _ClusterWork:
    """All work of one carrier in one cluster: its lives, its watches, and the requests to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cluster: Cluster, carrier: Carrier, run_id: str, patience: Patience) -> None:
        self.loop = loop
        self.cluster = cluster
        self.carrier = carrier
        self._requests = Requests(cluster, carrier)
        self._patience = patience
        self._works: dict[tuple[str, str], RemoteWork] = {}  # by namespace and silo
        self.watches = Watches(cluster, carrier.path, f"{RUN_LABEL}={run_id}", self)
        self._trouble: dict[str | None, str] = {}  # by namespace, None: in all
        self._listed: set[str | None] = set()  # where a watch has begun
        self._refused_since: dict[str | None, float] = {}
        self._tasks = Tasks()

    def trouble_in(self, namespace: str) -> str | None:
        """What keeps a namespace's watch from telling us anything."""
        return self._trouble.get(namespace) or self._trouble.get(None)

    async def close(self) -> None:
        """Delete what has not ended; whatever a server does not hear of in time ends by its lease and its deadline."""
        for work in self._works.values():
            self.happened(work, _STOP)
        until = time.monotonic() + _CLOSE_WITHIN
        while (left := [work for work in self._works.values() if work.life.state not in _DELETED]) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for work in left:
            print(f"{self.carrier.kind} {work.name} in namespace {work.namespace!r} of {self.cluster.name} could not be deleted; it ends by itself"
                  f" within {work.request.lease_s:g} s (protocol.lease)", file=sys.stderr, flush=True)
        await self._tasks.cancel()
        await self.watches.close()
        await self.cluster.aclose()

    # ---- lives

    def begin(self, work: RemoteWork) -> None:
        """Ask for its object. Called in the loop, like all of the following."""
        self._works[work.namespace, work.request.silo] = work
        self._tasks.start(self.watches.follow(work.namespace))
        self._tasks.start(self._send(work, Action.CREATE, _DUE))

    def happened(self, work: RemoteWork, event: Event) -> None:
        """Take one step."""
        before = work.life
        work.life, action = step(before, event, self.loop.time(), self._patience)
        if work.life is not before:
            if work.timer is not None:
                work.timer.cancel()
            work.timer = None if work.life.wake is None else self.loop.call_at(work.life.wake, self.happened, work, _DUE)
        if action is not None:
            self._tasks.start(self._send(work, action, event))

    async def _send(self, work: RemoteWork, action: Action, event: Event) -> None:
        self.happened(work, await self._requests.send(action, work.request, work.life, event))

    # ---- watch.Handler

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        self.reached(namespace)
        self._listed.add(namespace)
        for found in objects:
            self.changed("ADDED", found)
        there = {found["metadata"]["uid"] for found in objects}
        for work in self._works.values():
            if namespace in (None, work.namespace) and work.life.found is not None and work.life.found["metadata"]["uid"] not in there:
                self.happened(work, _MISSED)

    def reached(self, namespace: str | None) -> None:
        self._trouble.pop(namespace, None)

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        metadata = found["metadata"]
        work = self._works.get((metadata["namespace"], metadata.get("labels", {}).get(SILO_LABEL, "")))
        if work is None or work.name != metadata["name"]:
            return
        if kind == "DELETED":
            self.happened(work, gone(self.carrier, work.request, found))
        elif is_of(found, work.request):
            self.happened(work, seen(self.carrier, found))

    def refused(self, namespace: str | None, refusal: ApiRefusal) -> None:
        error = refusal_error(refusal, doing=f"watch {self.carrier.kind}s", namespace=namespace or "all", ask=self.carrier.ask)
        since = self._refused_since.setdefault(namespace, self.loop.time())
        if namespace in self._listed or self.loop.time() - since < self._patience.refusal:
            self._trouble[namespace] = str(error)
            return
        for work in self._works.values():
            if namespace in (None, work.namespace):
                self.happened(work, Event(name="denied", outcome=failed_by(error)))

    def unreachable(self, namespace: str | None, message: str) -> None:
        self._trouble[namespace] = f"{self.cluster.name} is not reached ({message}); its work goes on meanwhile"


class RemoteDispatcher:
    """Starts the work of silos that are in clusters, as many as they have, in one event loop."""

    def __init__(self, run_id: str, patience: Patience | None = None) -> None:
        self._run_id = run_id
        self._patience = patience or Patience()
        self._hubs: dict[tuple[str, str | None], _ClusterWork] = {}  # by dispatch kind and kubeconfig context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="clusters")
        self._thread.start()

    def start(self, request: WorkRequest) -> Work:
        """See request.Dispatcher."""
        from fedhelp_dispatch.cluster import Cluster

        key = kind, context = request.entry.dispatch.kind, request.entry.dispatch.context
        try:
            if key not in self._hubs:
                self._hubs[key] = _ClusterWork(self._loop, Cluster(context), carrier_of(kind), self._run_id, self._patience)
        except FedHelpError as e:
            return EndedWork(e)
        work = RemoteWork(self._hubs[key], request)
        self._loop.call_soon_threadsafe(self._hubs[key].begin, work)
        return work

    def close(self) -> None:
        """See request.Dispatcher."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        await asyncio.gather(*(hub.close() for hub in self._hubs.values()))
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    @property
    def connections(self) -> int:
        """Watches kept open."""
        return sum(hub.watches.connections for hub in self._hubs.values())
