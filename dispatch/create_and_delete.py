"""The requests that create, adopt, read and delete an object in a cluster: a Job, or the ManifestWork that carries one.

lifecycle.py says when, remote.py asks, a carrier says what the object is. What the server answers comes back as an event of the
object's life. An object is deleted by its uid: never somebody else's of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedhelp_core.errors import AccessDenied, ClusterUnavailable, FedHelpError, RunConflict
from fedhelp_dispatch.carrier import Carrier
from fedhelp_dispatch.job import Object, is_of, job_name
from fedhelp_dispatch.lifecycle import Action, Event, Life, Name
from fedhelp_dispatch.reading import Phase
from fedhelp_dispatch.refusals import ApiRefusal, quota_exceeded, refusal_error
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

if TYPE_CHECKING:
    from fedhelp_dispatch.cluster import Cluster  # its `kubernetes` takes seconds to import

_QUOTA_PAUSE = 15.0  # seconds: a quota frees up when somebody's Job ends
_DELETION_PAUSE = 1.0  # seconds: until pods have ended
_MADE_WAY = 0.2  # seconds: until a deleted object without pods is gone
_DELETE_AGAIN = 10.0  # seconds: the object waits for its pods, which get 30
_AWAY_AGAIN = 1.0  # seconds: a server that restarts is back within a few
_REFUSED_AGAIN = 2.0  # seconds
_NAMES: Mapping[Phase, Name] = {"running": "runs", "done": "done", "failed": "failed"}


class Requests:
    """To one cluster, for the objects of one carrier."""

    def __init__(self, cluster: Cluster, carrier: Carrier) -> None:
        self._cluster = cluster
        self._carrier = carrier

    async def send(self, action: Action, request: WorkRequest, life: Life, event: Event) -> Event:
        """Do what `event` made of `life`, and tell what came of it, an error too."""
        carrier = self._carrier
        try:
            return await self._answer(action, request, life, event)
        except ApiRefusal as e:
            namespace = carrier.namespace(request.entry)
            return _failed(refusal_error(e, doing=f"create and read {carrier.kind}s", namespace=namespace, ask=carrier.ask))
        except FedHelpError as e:
            return _failed(e)
        except Exception as e:  # a task's error would be lost: the supervisor reports it and tries again
            return Event(name="denied", outcome=Outcome(exit_code=1, reason=f"{type(e).__name__}: {e}"))

    async def _answer(self, action: Action, request: WorkRequest, life: Life, event: Event) -> Event:
        carrier = self._carrier
        if action is Action.CREATE:
            return await self._create(request)
        if action is Action.VERIFY:
            now = await self._ask("GET", request)
            return gone(carrier, request) if now is None or not is_of(now, request) else seen(carrier, now, answer=True)
        found = event.found if action is Action.CLEAR else life.found
        assert found is not None  # the table gives these actions to states that have seen it
        if action is Action.CLEAR:
            await self._ask("DELETE", request, _deletion(found, "Background"))
            return Event(name="held", pause_s=_MADE_WAY)
        if action is Action.LOOK:
            return await carrier.look(self._cluster, found)
        if action is Action.CONCLUDE:
            return Event(name="concluded", outcome=await carrier.conclude(self._cluster, found, life.waiting))
        taken = await self._ask("DELETE", request, _deletion(found, "Foreground"))
        return gone(carrier, request) if taken is None else Event(name="accepted", pause_s=_DELETE_AGAIN)

    async def _create(self, request: WorkRequest) -> Event:
        carrier = self._carrier
        try:
            body = await carrier.build(self._cluster, request)
            return seen(carrier, await self._cluster.call("POST", carrier.path(carrier.namespace(request.entry)), body=body), answer=True)
        except ApiRefusal as e:
            if e.status == 409:
                return name_taken(carrier, await self._ask("GET", request), request, self._cluster.name)
            if quota_exceeded(e):
                return _held(_QUOTA_PAUSE, f"the namespace's quota does not allow another {carrier.kind}: {e.message}; ask the hospital for more")
            carrier.rejected(request)
            raise

    async def _ask(self, method: str, request: WorkRequest, body: object = None) -> Any:
        """The object's own answer; None: it is not there."""
        path = self._carrier.path(self._carrier.namespace(request.entry))
        try:
            return await self._cluster.call(method, f"{path}/{job_name(request)}", body=body)
        except ApiRefusal as e:
            if e.status in (404, 409):  # 409: another object has its name, with another uid
                return None
            raise


def gone(carrier: Carrier, request: WorkRequest, found: Object | None = None) -> Event:
    """It is not there: not deleted by us, or the life has its outcome already."""
    return Event(name="gone", found=found, outcome=Outcome(exit_code=None, reason=f"its {carrier.kind} {job_name(request)} was deleted by somebody"))


def seen(carrier: Carrier, found: Object, *, answer: bool = False) -> Event:
    """What an object says of itself."""
    slim = carrier.slim(found)
    phase = carrier.read(slim).phase
    outcome = Outcome(exit_code=0) if phase == "done" else None
    return Event(name=_NAMES.get(phase, "waits"), answer=answer, found=slim, phase=phase, waiting=carrier.waits(slim), outcome=outcome)


def name_taken(carrier: Carrier, found: Object | None, request: WorkRequest, where: str) -> Event:
    """What to make of an object that has the name of `request`'s; None: it is gone meanwhile.

    Raises:
        RunConflict: it works for another request of the same run id.
    """
    if found is None:
        return _held(_MADE_WAY)
    if found["metadata"].get("deletionTimestamp"):
        return _held(_DELETION_PAUSE, f"an earlier {carrier.kind} of this work is still being deleted")
    if carrier.read(found).phase in ("done", "failed"):
        return Event(name="finished", found=found)
    if is_of(found, request):
        return seen(carrier, found, answer=True)
    raise RunConflict(
        f"{carrier.kind} {job_name(request)!r} in namespace {carrier.namespace(request.entry)!r} of {where} runs for another request (other store,"
        " deadline or lease) of the same run id; choose another run id, or delete it")


def _held(pause_s: float, reason: str | None = None) -> Event:
    return Event(name="held", pause_s=pause_s, waiting=None if reason is None else Waiting(reason=reason))


def _failed(error: FedHelpError) -> Event:
    """An outage ends and missing rights may be there in a moment; everything else is final."""
    denied = Event(name="denied", outcome=failed_by(error), waiting=Waiting(reason=str(error)))
    if isinstance(error, ClusterUnavailable):
        return replace(denied, name="away", trouble="away", pause_s=_AWAY_AGAIN)
    return replace(denied, name="refused", trouble="refusal", pause_s=_REFUSED_AGAIN) if isinstance(error, AccessDenied) else denied


def _deletion(found: Object, propagation: str) -> dict[str, Any]:
    """By its uid: never somebody else's object of the same name."""
    preconditions = {"uid": found["metadata"]["uid"]}
    return {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation, "preconditions": preconditions}


def failed_by(error: FedHelpError) -> Outcome:
    """Work that could not be asked for."""
    return Outcome(exit_code=error.exit_code, reason=str(error))
