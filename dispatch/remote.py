"""Work that an API server keeps for us: created, adopted, watched, explained and deleted, whatever kind of object carries it.

`kubernetes.py` (a Job in the silo's namespace) and `manifestwork.py` (a Job wrapped for a hospital's agent) say what the
object is and how to read it; this file has the one state machine of both. Nothing here blocks whoever asks: looks answer
from the last event, and every request to a server is made by a few threads per cluster. A server that is away is waited for.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fedhelp_core.config.dispatch import DispatchConfig
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import AccessDenied, ClusterUnavailable, FedHelpError, PermanentError, RunConflict
from fedhelp_dispatch.job import RUN_LABEL, SILO_LABEL, Object, is_of, job_name
from fedhelp_dispatch.reading import JobReading
from fedhelp_dispatch.refusals import ApiRefusal, explained, quota_exceeded
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest
from fedhelp_dispatch.watch import Collection, Watches

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_THREADS = 8  # per cluster
_CLOSE_WITHIN = 20.0  # seconds: Kubernetes gives a pod 30 between SIGTERM and SIGKILL
_CREATE_WITHIN = 300.0  # seconds that an unreachable server gets before the silo's supervisor hears of it
_LOOKS = (2.0, 60.0)  # seconds between looks at why a pod does not run: from, doubling, up to
_QUOTA_PAUSE = 15.0  # seconds
_DELETE_AGAIN = 10.0  # seconds
_ASK_AGAIN = 2.0  # seconds after a refusal
_EVENT_DRIVEN = math.inf


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds that a fault has to last before it counts as one."""

    fault: float = 300.0
    """An image that cannot be pulled: registries have outages."""
    refusal: float = 15.0
    """401, 403, and what a hospital's agent reports as refused: an API server that has just started does not know its roles yet."""


@dataclass(frozen=True)
class Look:
    """A closer look at work that does not run."""

    waiting: Waiting | None
    fault: Outcome | None = None
    """How the work ends should this last: a fault that waiting will hardly mend."""
    patience: Literal["fault", "refusal"] = "fault"
    """Which of Patience's it has to outlast."""


Right = tuple[str, str, tuple[str, ...]]
"""(API group, resource or resource/subresource, verbs)"""


class Carrier(Protocol):
    """What carries a request into a silo, and how to read it."""

    collection_group: str
    resource: str
    ask: str
    """What to do where the account lacks the rights."""
    rights: tuple[Right, ...]
    """What the account needs where the objects are, beside what `build` reads."""

    def namespace(self, silo: str) -> str:
        """Where the silo's objects are, in the cluster that the hub talks to."""

    def build(self, cluster: Cluster, request: WorkRequest) -> dict[str, Any]:
        """The object to create.

        Raises:
            ApiRefusal, FedHelpError: it cannot be made.
        """

    def rejected(self, request: WorkRequest) -> None:
        """The object was refused: forget what it was made of."""

    def slim(self, found: Object) -> dict[str, Any]:
        """What the other methods need of an object: a thousand of them are kept."""

    def read(self, found: Object) -> JobReading:
        """Its phase."""

    def waits(self, found: Object) -> Waiting | None:
        """Why it does not run, as far as the object itself says."""

    def look(self, cluster: Cluster, found: Object) -> Look:
        """Why it does not run, asking further."""

    def conclude(self, cluster: Cluster, found: Object, waited: Waiting | None) -> Outcome:
        """How failed work ended."""


class EndedWork:
    """Work that could not even be asked for."""

    def __init__(self, error: FedHelpError) -> None:
        self._outcome = Outcome(exit_code=error.exit_code, reason=str(error))

    def outcome(self) -> Outcome:
        """See request.Work."""
        return self._outcome

    def waiting(self) -> None:
        """It has ended."""

    def stop(self) -> None:
        """It has ended."""


class RemoteWork:
    """One object in a cluster. `outcome` also drives it: whoever supervises asks again and again anyway."""

    def __init__(self, hub: _ClusterWork, request: WorkRequest) -> None:
        self._hub = hub
        self._carrier = hub.carrier
        self.request = request
        self.name = job_name(request)
        self.namespace = hub.carrier.namespace(request.silo)
        self._path = f"{hub.collection.path(self.namespace)}/{self.name}"
        self._lock = threading.RLock()
        self._object: dict[str, Any] | None = None
        self._replaced: set[str] = set()  # uids of finished objects of this name, whose last events still arrive
        self._outcome: Outcome | None = None
        self._waiting: Waiting | None = Waiting(reason="being asked for")
        self._next = 0.0
        self._busy = False
        self._stop = False
        self._stopped = Outcome(exit_code=None, reason="stopped")  # the outcome once it is deleted
        self._suspect = False
        self._phase = ""
        self._looks = 0
        self._began = time.monotonic()
        self._fault_since: float | None = None
        self._refused_since: float | None = None
        self.deletion_sent = False

    def outcome(self) -> Outcome | None:
        """See request.Work."""
        self.drive()
        return self._outcome

    def waiting(self) -> Waiting | None:
        """See request.Work."""
        waiting = self._waiting
        trouble = self._hub.trouble_in(self.namespace)
        return Waiting(reason=trouble) if waiting is not None and trouble is not None else waiting

    @property
    def made(self) -> bool:
        """Whether the object is there, or was."""
        return self._object is not None or self._outcome is not None

    def stop(self) -> None:
        """Delete it, its pods first."""
        with self._lock:
            self._stop, self._next = True, 0.0
        self.drive()

    def drive(self) -> None:
        """Have a thread take the next step, if it is time for one."""
        with self._lock:
            if self._outcome is not None or self._busy or time.monotonic() < self._next:
                return
            self._busy = True
        self._hub.submit(self._step)

    # ---- events, from the watching thread

    def observed(self, found: dict[str, Any]) -> None:
        """The object is as `found` now."""
        with self._lock:
            if self._outcome is not None or found["metadata"].get("uid") in self._replaced or not is_of(found, self.request):
                return
            self._object = self._carrier.slim(found)
            self._suspect = False
            self._take_in(self._carrier.read(self._object))

    def deleted(self, uid: str) -> None:
        """The object of that uid is gone."""
        with self._lock:
            if self._object is not None and self._object["metadata"].get("uid") == uid:
                self._gone()

    def unlisted(self) -> None:
        """A listing did not have the object; it may be older than the object."""
        with self._lock:
            if self._object is not None and self._outcome is None:
                self._suspect, self._next = True, 0.0

    def end(self, outcome: Outcome) -> None:
        """It has ended."""
        with self._lock:
            self._outcome = self._outcome or outcome

    def _take_in(self, reading: JobReading) -> None:
        assert self._object is not None
        if reading.phase == "done":
            self._outcome = Outcome(exit_code=0)
        elif reading.phase == "failed":
            self._next = 0.0
        elif reading.phase == "running":
            self._waiting, self._looks, self._fault_since, self._next = None, 0, None, self._next if self._stop else _EVENT_DRIVEN
        elif not self._stop:
            coarse = self._carrier.waits(self._object)
            if reading.phase != self._phase:
                self._looks = 0
            if reading.phase not in ("pending", "queued"):
                self._waiting, self._next = coarse, _EVENT_DRIVEN
            elif self._next == _EVENT_DRIVEN or self._looks == 0:
                self._waiting, self._next = coarse, time.monotonic() + _LOOKS[0]
        self._phase = reading.phase

    def _gone(self) -> None:
        if self._stop:
            self.end(self._stopped)
        else:
            self.end(Outcome(exit_code=None, reason=f"its {self._hub.kind} {self.name} was deleted by somebody"))

    # ---- steps, from the cluster's threads

    def _step(self) -> None:
        try:
            if self._stop:
                self._delete()
            elif self._object is None:
                self._create()
            elif self._suspect:
                self._verify()
            else:
                self._examine(self._object)
            self._refused_since = None
        except ClusterUnavailable as e:
            self._refused_since = None  # it knows its roles no sooner for having been away
            self._unreachable(e)
        except ApiRefusal as e:
            self._refused(explained(e, doing=f"create and read {self._hub.kind}s", namespace=self.namespace, ask=self._carrier.ask))
        except AccessDenied as e:
            self._refused(e)
        except FedHelpError as e:
            self.end(Outcome(exit_code=e.exit_code, reason=str(e)))
        except Exception as e:  # a thread's error would be lost: the supervisor reports it and tries again
            self.end(Outcome(exit_code=1, reason=f"{type(e).__name__}: {e}"))
        finally:
            with self._lock:
                self._busy = False
            if self._stop:
                self.drive()

    def _refused(self, error: PermanentError) -> None:
        """Missing rights may be there in a moment; everything else is final."""
        self._refused_since = self._refused_since or time.monotonic()
        if isinstance(error, AccessDenied) and time.monotonic() - self._refused_since < self._hub.patience.refusal:
            self._later(_ASK_AGAIN, str(error))
        else:
            self.end(Outcome(exit_code=error.exit_code, reason=str(error)))

    def _create(self) -> None:
        body = self._carrier.build(self._hub.cluster, self.request)
        try:
            created = self._hub.cluster.call("POST", self._hub.collection.path(self.namespace), body=body)
        except ApiRefusal as e:
            if e.status == 409:
                self._adopt()
            elif quota_exceeded(e):
                self._later(_QUOTA_PAUSE, f"the namespace's quota does not allow another {self._hub.kind}: {e.message}; ask the hospital for more")
            else:
                self._carrier.rejected(self.request)
                raise
            return
        with self._lock:
            if self._object is None:  # else an event was faster, and newer
                self.observed(created)

    def _adopt(self) -> None:
        """What to do with an object that has our name already."""
        found = self._get()
        if found is None:
            self._later(0.2)
            return
        if found["metadata"].get("deletionTimestamp"):
            self._later(1.0, f"an earlier {self._hub.kind} of this work is still being deleted")
            return
        finished = self._carrier.read(found).phase in ("done", "failed")
        if finished:
            self._replaced.add(found["metadata"]["uid"])
            self._hub.delete(self._path, found["metadata"]["uid"], "Background")
            self._later(0.2)
        elif is_of(found, self.request):
            self.observed(found)
        else:
            raise RunConflict(
                f"{self._hub.kind} {self.name!r} in namespace {self.namespace!r} of {self._hub.cluster.name} runs for another request (other store,"
                " deadline or lease) of the same run id; choose another run id, or delete it")

    def _verify(self) -> None:
        found = self._get()
        with self._lock:
            if found is None:
                self._gone()
            else:
                self._suspect, self._next = False, time.monotonic() + _LOOKS[0]
                self.observed(found)

    def _examine(self, found: dict[str, Any]) -> None:
        if self._carrier.read(found).phase == "failed":
            self.end(self._carrier.conclude(self._hub.cluster, found, self._waiting))
            return
        look = self._carrier.look(self._hub.cluster, found)
        with self._lock:
            if self._object is not found:
                return  # an event came meanwhile, and set what comes next
            self._waiting = look.waiting
            self._looks += 1
            self._next = _EVENT_DRIVEN if look.waiting is None else time.monotonic() + min(_LOOKS[1], _LOOKS[0] * 2.0**self._looks)
        self._count_fault(look)

    def _count_fault(self, look: Look) -> None:
        if look.fault is None:
            self._fault_since = None
            return
        self._fault_since = self._fault_since or time.monotonic()
        patience = self._hub.patience
        if time.monotonic() - self._fault_since >= (patience.fault if look.patience == "fault" else patience.refusal):
            self._stopped = look.fault
            self.stop()

    def _delete(self) -> None:
        if self._object is None:
            self.deletion_sent = True
            self.end(self._stopped)
            return
        there = self._hub.delete(self._path, self._object["metadata"]["uid"], "Foreground")
        self.deletion_sent = True
        self._later(_DELETE_AGAIN)
        if not there:
            self.end(self._stopped)

    def _get(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._hub.cluster.call("GET", self._path)
        except ApiRefusal as e:
            if e.status == 404:
                return None
            raise
        return found

    def _later(self, seconds: float, reason: str | None = None) -> None:
        with self._lock:
            self._next = time.monotonic() + seconds
            if reason is not None:
                self._waiting = Waiting(reason=reason)

    def _unreachable(self, error: ClusterUnavailable) -> None:
        """What is there goes on without us; what is not there can wait for some minutes."""
        if self._object is None and time.monotonic() - self._began > _CREATE_WITHIN:
            self.end(Outcome(exit_code=error.exit_code, reason=str(error)))
        else:
            self._later(1.0, str(error) if self._object is None else None)


class _ClusterWork:
    """All work of one carrier in one cluster: threads, watches, and who is told of what."""

    def __init__(self, cluster: Cluster, carrier: Carrier, kind: str, run_id: str, patience: Patience) -> None:
        self.cluster = cluster
        self.carrier = carrier
        self.kind = kind
        self.patience = patience
        self._refused_since: dict[str | None, float] = {}  # by namespace: watches that never began; inf: one that did
        self.collection = Collection(carrier.collection_group, carrier.resource, f"{RUN_LABEL}={run_id}")
        self._trouble: dict[str | None, str] = {}  # by namespace, None: in all
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"cluster-{cluster.context or 'own'}")
        self._works: dict[tuple[str, str], RemoteWork] = {}  # by namespace and silo: one piece of work at a time each
        self._watches = Watches(cluster.endpoint, self.collection, self)

    def start(self, request: WorkRequest) -> RemoteWork:
        work = RemoteWork(self, request)
        self._works[work.namespace, request.silo] = work
        self._watches.follow(work.namespace)
        work.drive()
        return work

    def trouble_in(self, namespace: str) -> str | None:
        """What keeps a namespace's watch from telling us anything."""
        return self._trouble.get(namespace) or self._trouble.get(None)

    def submit(self, step: Callable[[], None]) -> None:
        try:
            self._pool.submit(step)
        except RuntimeError:  # closed: nobody waits for this step any more
            return

    def delete(self, path: str, uid: str, propagation: str) -> bool:
        """Whether it was there. The uid: never somebody else's object of the same name."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation, "preconditions": {"uid": uid}}
        try:
            self.cluster.call("DELETE", path, body=options)
        except ApiRefusal as e:
            if e.status in (404, 409):
                return False
            raise
        return True

    def close(self) -> None:
        """Delete what has not ended; whatever a server does not hear of in time ends by its lease and its deadline."""
        left = [work for work in self._works.values() if work.outcome() is None]
        for work in left:
            work.stop()
        until = time.monotonic() + _CLOSE_WITHIN
        while (left := [w for w in left if not w.deletion_sent and w.outcome() is None]) and time.monotonic() < until:
            time.sleep(0.05)
        for work in left:
            print(f"{self.kind} {work.name} in namespace {work.namespace!r} of {self.cluster.name} could not be deleted; it ends by itself within"
                  f" {work.request.lease_s:g} s (protocol.lease)", file=sys.stderr, flush=True)
        self._watches.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def connections(self) -> int:
        return self._watches.connections

    # ---- watch.Handler

    def listed(self, namespace: str | None, objects: list[dict[str, Any]]) -> None:
        self.reached(namespace)
        self._refused_since[namespace] = math.inf
        there = {(found["metadata"]["namespace"], found["metadata"]["name"]) for found in objects}
        for found in objects:
            self.changed("ADDED", found)
        for work in list(self._works.values()):
            if namespace in (None, work.namespace) and (work.namespace, work.name) not in there:
                work.unlisted()

    def reached(self, namespace: str | None) -> None:
        self._trouble.pop(namespace, None)

    def changed(self, kind: str, found: dict[str, Any]) -> None:
        metadata = found["metadata"]
        work = self._works.get((metadata["namespace"], metadata.get("labels", {}).get(SILO_LABEL, "")))
        if work is None or work.name != metadata["name"]:
            return
        if kind == "DELETED":
            work.deleted(metadata["uid"])
        else:
            work.observed(found)

    def refused(self, namespace: str | None, status: int, message: str) -> None:
        if status == 401 and self.cluster.renew():
            return
        since = self._refused_since.setdefault(namespace, time.monotonic())
        refusal = ApiRefusal(status, message, self.cluster.name)
        error = explained(refusal, doing=f"watch {self.kind}s", namespace=namespace or "all", ask=self.carrier.ask)
        if time.monotonic() - since < self.patience.refusal:
            self._trouble[namespace] = str(error)
            return
        for work in list(self._works.values()):
            if namespace in (None, work.namespace):
                work.end(Outcome(exit_code=error.exit_code, reason=str(error)))

    def unreachable(self, namespace: str | None, message: str) -> None:
        self._trouble[namespace] = f"{self.cluster.name} is not reached ({message}); its work goes on meanwhile"


class RemoteDispatcher:
    """Starts the work of the silos that one carrier serves, in as many clusters as they have."""

    def __init__(self, federation: Federation, run_id: str, carrier: Carrier, kind: str, patience: Patience) -> None:
        self._dispatch: Mapping[str, DispatchConfig] = {silo.name: silo.dispatch for silo in federation.silos}
        self._run_id = run_id
        self._carrier = carrier
        self._kind = kind
        self._patience = patience
        self._clusters: dict[str | None, _ClusterWork] = {}

    def start(self, request: WorkRequest) -> RemoteWork | EndedWork:
        """See request.Dispatcher."""
        from fedhelp_dispatch.cluster import Cluster

        context = self._dispatch[request.silo].context
        try:
            if context not in self._clusters:
                self._clusters[context] = _ClusterWork(Cluster(context), self._carrier, self._kind, self._run_id, self._patience)
        except FedHelpError as e:
            return EndedWork(e)
        return self._clusters[context].start(request)

    def close(self) -> None:
        """See request.Dispatcher."""
        threads = [threading.Thread(target=cluster.close) for cluster in self._clusters.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._clusters = {}

    @property
    def requests(self) -> int:
        """Sent to all clusters, watches not counted."""
        return sum(work.cluster.requests for work in self._clusters.values())

    @property
    def connections(self) -> int:
        """Watches kept open."""
        return sum(work.connections for work in self._clusters.values())
