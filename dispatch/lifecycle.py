"""The life of one object that carries work into a silo: ten states, and what each event makes of them. Pure.

`step(life, event, now, patience)` gives the next life and the request to send, if any. Whatever happens is an event: answers
to requests, what a watch sees, a timer, a supervisor's stop. TRANSITIONS says which state follows and what is asked for;
docs/dispatch.md prints it. Driven by remote.py in its asyncio loop, by tests with scripted events and a clock of their own.

Invariants: one request is on its way at a time, but for a look or a verification that an event has overtaken, whose answer is
then dropped; a life that has ended never changes; an object is deleted by its uid alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from fedhelp_dispatch.job import Object
from fedhelp_dispatch.reading import Phase
from fedhelp_dispatch.request import Outcome, Waiting

_LOOKS = (2.0, 60.0)  # seconds between looks at why a pod does not run: from, doubling, up to; a scheduler's reason changes seldom
_DOUBLINGS = 10  # more than the longest pause needs; work may wait for days, and 2.0 ** 1024 is no number
_NEW = Waiting(reason="being asked for")


class State(StrEnum):
    """Where the work is."""

    ASKING = "asking"
    """A request to create it is on its way."""
    HELD = "held"
    """It is not there, and will be asked for again."""
    WAITING = "waiting"
    """It is there and does not run; looks find out why."""
    RUNNING = "running"
    """Nothing is asked: the watch will tell."""
    DOUBTED = "doubted"
    """A listing did not have it, which may be older than the object: it is being read."""
    CONCLUDING = "concluding"
    """It has failed; its last pod and log are being read."""
    WITHDRAWN = "withdrawn"
    """Stopped before the answer to its creation."""
    STOPPING = "stopping"
    """A request to delete it is on its way."""
    ENDING = "ending"
    """The server has taken the deletion; pods go first."""
    ENDED = "ended"


class Action(StrEnum):
    """A request to the server; its answer is an event."""

    CREATE = "create"
    CLEAR = "clear"
    """Delete the finished object that has the name."""
    LOOK = "look"
    VERIFY = "verify"
    CONCLUDE = "conclude"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds that trouble has to last before it ends work."""

    fault: float = 300.0
    """An image that cannot be pulled: registries have outages."""
    refusal: float = 15.0
    """401, 403, and what a hospital's agent reports as refused: an API server that has just started does not know its roles yet."""
    away: float = 300.0
    """A server that is not reached, before the object is there; what is there goes on without us, and is waited for without limit."""


Name = Literal[
    "waits", "runs", "done", "failed", "gone", "missed", "finished", "held", "looked", "hopeless", "concluded", "accepted", "away", "lost", "refused",
    "denied", "due", "stop"]
TroubleKind = Literal["fault", "refusal", "away"]
_LASTING: Mapping[Name, Name] = {"looked": "hopeless", "refused": "denied", "away": "lost"}
"""What an event of trouble is called once its trouble has outlasted Patience."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened; docs/dispatch.md says when each has which name."""

    name: Name
    answer: bool = False
    """Of one that shows the object: whether it answers a request of ours; else a watch saw it."""
    found: Object | None = None
    """The object that it speaks of; of `looked`: the very one that was looked at."""
    phase: Phase | None = None
    waiting: Waiting | None = None
    """Why the work does not run, as far as this event knows."""
    outcome: Outcome | None = None
    """How the work ends, if this event ends it."""
    trouble: TroubleKind | None = None
    """Whose Patience it tries."""
    pause_s: float | None = None
    """Seconds until something is to be asked for again; None: nothing is, or the machine knows."""


_SEEN: Mapping[Name, tuple[State, Action | None]] = {
    "waits": (State.WAITING, None), "runs": (State.RUNNING, None), "done": (State.ENDED, None), "failed": (State.CONCLUDING, Action.CONCLUDE)}
_OVER: Mapping[Name, tuple[State, Action | None]] = {"gone": (State.ENDED, None), "denied": (State.ENDED, None)}
_UNWANTED: Mapping[Name, tuple[State, Action | None]] = {"done": (State.ENDED, None), **_OVER}

TRANSITIONS: Mapping[State, Mapping[Name, tuple[State, Action | None]]] = {
    State.ASKING: {
        "waits": (State.WAITING, None), "runs": (State.RUNNING, None), "finished": (State.ASKING, Action.CLEAR),
        "held": (State.HELD, None), "away": (State.HELD, None), "refused": (State.HELD, None),
        "lost": (State.ENDED, None), "denied": (State.ENDED, None), "stop": (State.WITHDRAWN, None)},
    State.HELD: {
        "waits": (State.WAITING, None), "runs": (State.RUNNING, None), "due": (State.ASKING, Action.CREATE),
        "denied": (State.ENDED, None), "stop": (State.ENDED, None)},
    State.WAITING: {
        **_SEEN, **_OVER, "missed": (State.DOUBTED, Action.VERIFY), "looked": (State.WAITING, None), "hopeless": (State.STOPPING, Action.DELETE),
        "away": (State.WAITING, None), "refused": (State.WAITING, None), "due": (State.WAITING, Action.LOOK),
        "stop": (State.STOPPING, Action.DELETE)},
    State.RUNNING: {**_SEEN, **_OVER, "missed": (State.DOUBTED, Action.VERIFY), "stop": (State.STOPPING, Action.DELETE)},
    State.DOUBTED: {
        **_SEEN, **_OVER, "away": (State.DOUBTED, None), "refused": (State.DOUBTED, None), "due": (State.DOUBTED, Action.VERIFY),
        "stop": (State.STOPPING, Action.DELETE)},
    State.CONCLUDING: {
        **_OVER, "concluded": (State.ENDED, None), "away": (State.CONCLUDING, None), "refused": (State.CONCLUDING, None),
        "due": (State.CONCLUDING, Action.CONCLUDE), "stop": (State.STOPPING, Action.DELETE)},
    State.WITHDRAWN: {
        "waits": (State.STOPPING, Action.DELETE), "runs": (State.STOPPING, Action.DELETE), "finished": (State.ENDED, None),
        "held": (State.ENDED, None), "away": (State.ENDED, None), "refused": (State.ENDED, None), "lost": (State.ENDED, None),
        "denied": (State.ENDED, None)},
    State.STOPPING: {
        **_UNWANTED, "accepted": (State.ENDING, None), "away": (State.STOPPING, None), "refused": (State.STOPPING, None),
        "due": (State.STOPPING, Action.DELETE)},
    State.ENDING: {
        **_UNWANTED, "accepted": (State.ENDING, None), "away": (State.ENDING, None), "refused": (State.ENDING, None),
        "due": (State.ENDING, Action.DELETE)},
    State.ENDED: {},
}
"""State -> event -> the next state and the request to send. An event that a state does not list changes nothing there."""


@dataclass(frozen=True)
class Trouble:
    """What keeps the work from going on, and since when by our clock."""

    kind: TroubleKind
    since: float


@dataclass(frozen=True, kw_only=True)
class Life:
    """Everything that is known of one object. Times are seconds by the clock of whoever calls `step`."""

    state: State = State.ASKING
    found: Object | None = None
    """The object as it was seen last."""
    phase: Phase | None = None
    waiting: Waiting | None = _NEW
    outcome: Outcome | None = None
    """How it ended; of work that is being stopped: how it will have ended."""
    wake: float | None = None
    """When `due` is due; None: only another event changes anything."""
    looks: int = 0
    trouble: Trouble | None = None


def looked(found: Object, waiting: Waiting | None, fault: Outcome | None = None, kind: TroubleKind = "fault") -> Event:
    """What a look at `found` says; waiting None: it runs after all; `fault`: how the work ends should this last."""
    return Event(name="looked", found=found, waiting=waiting, outcome=fault, trouble=None if fault is None else kind)


def step(life: Life, event: Event, now: float, patience: Patience) -> tuple[Life, Action | None]:
    """The life after `event`, and the request to send."""
    if _overtaken(life, event):
        return life, None
    trouble = _trouble(life, event, now)
    lasted = event.trouble is not None and trouble is not None and now - trouble.since >= getattr(patience, trouble.kind)
    name = _LASTING[event.name] if lasted and (event.name != "away" or life.found is None) else event.name
    if (known := TRANSITIONS[life.state].get(name)) is None:
        return life, None
    state, action = known
    after = replace(_learnt(life, event, now), state=state, trouble=trouble)
    if state in (State.ENDED, State.STOPPING, State.WITHDRAWN):
        after = replace(after, outcome=event.outcome if name == "done" else life.outcome or event.outcome)
    return (after if action is None and state is not State.ENDED else replace(after, wake=None)), action


def _overtaken(life: Life, event: Event) -> bool:
    """Whether an event speaks of another object, or answers what nobody asks any more."""
    if event.name == "looked":
        return event.found is not life.found
    if event.answer:
        return life.state not in (State.ASKING, State.WITHDRAWN, State.DOUBTED)
    return event.found is not None and life.found is not None and event.found["metadata"].get("uid") != life.found["metadata"].get("uid")


def _trouble(life: Life, event: Event, now: float) -> Trouble | None:
    """Trouble of one kind counts from its first event on; an answer without it ends it, and so does work that runs."""
    if event.trouble is not None:
        return life.trouble if life.trouble is not None and life.trouble.kind == event.trouble else Trouble(event.trouble, now)
    unrelated = event.name in ("due", "stop", "missed") or (event.phase is not None and event.phase != "running" and not event.answer)
    return life.trouble if unrelated else None


def _learnt(life: Life, event: Event, now: float) -> Life:
    """What `event` says, kept."""
    wake = None if event.pause_s is None else now + event.pause_s
    if event.name == "looked":
        pause = min(_LOOKS[1], _LOOKS[0] * 2.0 ** min(life.looks + 1, _DOUBLINGS))
        return replace(life, waiting=event.waiting, looks=life.looks + 1, wake=None if event.waiting is None else now + pause)
    if event.phase is None:
        said = event.waiting is not None and (event.name != "away" or life.found is None)  # of what is there its namespace's watch speaks
        return replace(life, waiting=event.waiting if said else life.waiting, wake=wake)
    looks = life.looks if event.phase == life.phase else 0
    after = replace(life, found=event.found, phase=event.phase, looks=looks, wake=None)
    if event.phase not in ("pending", "queued"):  # what it waited for last belongs to the conclusion of failed work
        return replace(after, waiting=life.waiting if event.phase == "failed" else event.waiting)
    known = looks > 0 and life.waiting is not None  # by a look, which says more than the object itself
    return replace(
        after, waiting=life.waiting if known else event.waiting, wake=life.wake if known and life.wake is not None else now + _LOOKS[0])
