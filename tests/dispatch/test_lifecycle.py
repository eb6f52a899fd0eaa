"""lifecycle.py without a cluster: every state and event of the table, the table in docs/dispatch.md, and stories by scripted events and a clock."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from fedhelp_core.config.dispatch import DISPATCH_KINDS, DispatchConfig, SiloEntry
from fedhelp_core.errors import RunConflict
from fedhelp_dispatch.carrier import Carrier, carrier_of
from fedhelp_dispatch.create_and_delete import name_taken, seen
from fedhelp_dispatch.job import QUEUE_LABEL, is_of, job_of
from fedhelp_dispatch.lifecycle import TRANSITIONS, Action, Event, Life, Name, Patience, State, Trouble, looked, step
from fedhelp_dispatch.manifestwork import manifest_work_of
from fedhelp_dispatch.reading import failure, pull_fault, why_waiting
from fedhelp_dispatch.request import Outcome, Waiting, WorkRequest

NAMES: tuple[Name, ...] = get_args(Name)
PATIENCE = Patience(fault=300.0, refusal=15.0, away=300.0)
DOCUMENTED = Path(__file__).parents[2] / "docs" / "dispatch.md"
ERROR = Outcome(exit_code=14, reason="the hub's account may not create Jobs")
FAULT = Outcome(exit_code=19, reason="image 'i' cannot be pulled")
OBJECT: Mapping[str, Any] = {"metadata": {"uid": "1"}}

# ---- the table


def documented() -> dict[str, dict[str, str]]:
    """The matrix of docs/dispatch.md: state -> event -> cell."""
    lines = [line for line in DOCUMENTED.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    first = next(number for number, line in enumerate(lines) if line.startswith("| event | asking"))
    heading, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[first:first + 2 + len(NAMES)]]
    return {state: {row[0]: row[column] for row in rows if row[column]} for column, state in enumerate(heading) if column > 0}


def test_the_documented_table_is_the_one_in_force() -> None:
    in_force = {
        str(state): {name: str(after) if action is None else f"{after}, {action}" for name, (after, action) in row.items()}
        for state, row in TRANSITIONS.items() if state is not State.ENDED}
    assert documented() == in_force


def test_every_state_can_be_reached_and_can_end() -> None:
    following = {state: {after for after, _ in row.values()} for state, row in TRANSITIONS.items()}

    def reached(first: State) -> set[State]:
        known: set[State] = set()
        open_ones = {first}
        while open_ones:
            known |= open_ones
            open_ones = {after for state in open_ones for after in following[state]} - known
        return known

    assert reached(State.ASKING) == set(State)
    assert all(State.ENDED in reached(state) for state in State)


AWAY = Event(name="away", outcome=ERROR, waiting=Waiting(reason=ERROR.reason), trouble="away", pause_s=1.0)
REFUSED = replace(AWAY, name="refused", trouble="refusal", pause_s=2.0)
DENIED = Event(name="denied", outcome=ERROR)
QUOTA = Event(name="held", waiting=Waiting(reason="the quota is used up"), pause_s=15.0)
ACCEPTED = Event(name="accepted", pause_s=10.0)
GONE = Event(name="gone", outcome=Outcome(exit_code=None, reason="its Job was deleted by somebody"))
MISSED = Event(name="missed")
STOPPED = Outcome(exit_code=None, reason="stopped")
STOP = Event(name="stop", outcome=STOPPED)


def event_named(name: Name, state: State) -> Event:
    """One that `state` can meet."""
    answer = state in (State.ASKING, State.WITHDRAWN)
    events = {
        "waits": Event(name="waits", found=OBJECT, phase="pending", waiting=Waiting(reason="no pod yet"), answer=answer),
        "runs": Event(name="runs", found=OBJECT, phase="running", answer=answer),
        "done": Event(name="done", found=OBJECT, phase="done", outcome=Outcome(exit_code=0)),
        "failed": Event(name="failed", found=OBJECT, phase="failed"), "gone": replace(GONE, found=OBJECT), "missed": MISSED,
        "finished": Event(name="finished", found=OBJECT), "held": QUOTA,
        "looked": Event(name="looked", found=OBJECT, waiting=Waiting(reason="no node")),
        "hopeless": Event(name="looked", found=OBJECT, waiting=Waiting(reason="no image"), outcome=FAULT, trouble="fault"),
        "concluded": Event(name="concluded", outcome=FAULT), "accepted": ACCEPTED, "away": AWAY, "lost": AWAY, "refused": REFUSED, "denied": DENIED,
        "due": Event(name="due"), "stop": STOP}
    return events[name]


def life_in(state: State, name: Name) -> Life:
    """A life in `state`, in which the event of that name has the meaning of the name."""
    there = state not in (State.ASKING, State.HELD, State.WITHDRAWN)
    trouble = {"hopeless": Trouble("fault", -1000.0), "lost": Trouble("away", -1000.0)}.get(name)
    unwanted = STOPPED if state in (State.WITHDRAWN, State.STOPPING, State.ENDING) else None
    return Life(state=state, found=OBJECT if there else None, phase="pending" if there else None, outcome=unwanted, trouble=trouble)


@pytest.mark.parametrize(("state", "name"), [
    (state, name) for state in State for name in NAMES if name != "lost" or state in (State.ASKING, State.WITHDRAWN)])  # before the object is there
def test_each_event_leads_where_the_table_says_and_changes_nothing_elsewhere(state: State, name: Name) -> None:
    before = life_in(state, name)
    after, action = step(before, event_named(name, state), 0.0, PATIENCE)
    if name not in TRANSITIONS[state]:
        assert after is before and action is None
        return
    assert (after.state, action) == TRANSITIONS[state][name]
    assert (after.outcome is not None) >= (after.state is State.ENDED)
    assert after.wake is None or action is None, "a request on its way and a timer would ask twice"
    expected_to_wake = after.state is State.HELD or (after.state is State.WAITING and action is None) or name in ("away", "refused", "accepted")
    assert (after.wake is not None) == (expected_to_wake and after.state is not State.ENDED)


def test_refusals_count_as_denied_in_every_state_once_they_last() -> None:
    for state in State:
        if "refused" in TRANSITIONS[state]:
            life = replace(life_in(state, "refused"), trouble=Trouble("refusal", -20.0))
            assert step(life, REFUSED, 0.0, PATIENCE)[0].state is TRANSITIONS[state]["denied"][0]


# ---- stories


def entry(kind: str = "kubernetes", **dispatch: Any) -> SiloEntry:
    return SiloEntry.model_validate({"name": "aachen", "dispatch": {"kind": kind, **dispatch}})


TEMPLATE: dict[str, Any] = {"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "worker"}]}}}}}}
REQUEST = WorkRequest(run_id="run-1", entry=entry(), action="train", store_url="s3://exchange/test", deadline_s=3600, lease_s=600.0)


def concluded(outcome: Outcome) -> Event:
    return Event(name="concluded", outcome=outcome)


class Story:
    """One life, a clock that only the story moves, and what was asked of the server."""

    def __init__(self, kind: str = "kubernetes", request: WorkRequest = REQUEST) -> None:
        self.carrier: Carrier = carrier_of(kind)
        self.request = request
        self.now = 1000.0
        self.life = Life()
        self.asked = [Action.CREATE]

    def happens(self, event: Event, *, after: float = 0.0) -> Story:
        """`event`, so many seconds later. Timers that are due before it go first, and must find the state that they were set for."""
        until = self.now + after
        while self.life.wake is not None and self.life.wake <= until:
            self.now = self.life.wake
            self._take(Event(name="due"))
        self.now = until
        self._take(event)
        return self

    def _take(self, event: Event) -> None:
        self.life, action = step(self.life, event, self.now, PATIENCE)
        self.asked += [action] if action is not None else []

    def job(self, **status: Any) -> dict[str, Any]:
        """The request's Job, as the API server has it."""
        made = job_of(TEMPLATE, self.request, namespace="fedhelp-aachen")
        made["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return {**made, "status": status}

    def sees(self, found: Mapping[str, Any], *, answer: bool = False, after: float = 0.0) -> Story:
        return self.happens(seen(self.carrier, found, answer=answer), after=after)

    def looks(self, waiting: Waiting | None, fault: Outcome | None = None, *, after: float = 0.0) -> Story:
        """The answer to the look that is on its way."""
        assert self.asked[-1] is Action.LOOK and self.life.found is not None
        return self.happens(looked(self.life.found, waiting, fault), after=after)

    def waits_until_due(self) -> Story:
        """Until the timer that is set."""
        assert self.life.wake is not None
        self.now = self.life.wake
        self._take(Event(name="due"))
        return self

    @property
    def said(self) -> str:
        """What it waits for."""
        return "" if self.life.waiting is None else self.life.waiting.reason

    @property
    def end(self) -> Outcome:
        assert self.life.state is State.ENDED and self.life.outcome is not None
        return self.life.outcome


RUNS = {"ready": 1, "startTime": "2026-01-01T00:00:10Z"}
DONE = {"conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "worker failed with exit code 11"}]}
LATE = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}]}


def begun(story: Story | None = None) -> Story:
    """Its Job is made and waits."""
    story = story or Story()
    return story.sees(story.job(), answer=True)


def running() -> Story:
    story = begun()
    return story.sees(story.job(**RUNS), after=1.0)


def test_work_is_made_waits_runs_and_is_done() -> None:
    story = begun()
    assert (story.life.state, story.said) == (State.WAITING, "no pod yet")
    story.waits_until_due().looks(Waiting(reason="no node can take its pod: Insufficient nvidia.com/gpu"))
    assert "Insufficient nvidia.com/gpu" in story.said
    story.sees(story.job(**RUNS), after=1.0)
    assert (story.life.state, story.said, story.life.wake) == (State.RUNNING, "", None), "a running Job costs no request"
    assert story.sees(story.job(**DONE), after=9999.0).end.done
    assert story.asked == [Action.CREATE, Action.LOOK]


def test_a_409_with_the_same_request_is_adopted_running_or_not() -> None:
    story = Story()
    story.happens(name_taken(story.carrier, story.job(**RUNS), REQUEST, "the cluster"))
    assert story.life.state is State.RUNNING


def test_a_409_with_another_request_is_a_conflict() -> None:
    story = Story()
    other = job_of(TEMPLATE, replace(REQUEST, store_url="s3://exchange/other"), namespace="fedhelp-aachen")
    assert not is_of(other, REQUEST)
    with pytest.raises(RunConflict, match="runs for another request"):
        name_taken(story.carrier, other, REQUEST, "the cluster")


def test_a_409_of_a_finished_job_makes_way_and_its_late_events_are_not_taken_for_ours() -> None:
    story = Story()
    old = story.job(**FAILED)
    story.sees(old)
    assert story.life.state is State.ASKING, "the watch shows the old one first"
    story.happens(name_taken(story.carrier, old, REQUEST, "the cluster"))
    assert story.asked[-1] is Action.CLEAR
    story.happens(Event(name="held", pause_s=0.2)).sees(old).waits_until_due()
    new = story.job()
    new["metadata"]["uid"] = "2"
    story.sees(new, answer=True).sees(old, after=0.1).happens(replace(GONE, found=old))
    assert story.life.state is State.WAITING and story.life.found is not None and story.life.found["metadata"]["uid"] == "2"
    assert story.asked == [Action.CREATE, Action.CLEAR, Action.CREATE]


def test_a_409_of_an_object_that_is_being_deleted_is_waited_for() -> None:
    story = Story()
    leaving = story.job()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    story.happens(name_taken(story.carrier, leaving, REQUEST, "the cluster"))
    assert story.life.state is State.HELD and "still being deleted" in story.said
    assert story.waits_until_due().asked == [Action.CREATE, Action.CREATE]
    assert name_taken(story.carrier, None, REQUEST, "the cluster").name == "held", "gone between the two requests"


def test_a_quota_that_refuses_the_job_is_asked_again_until_it_is_lifted() -> None:
    story = Story()
    for _ in range(1000):
        story.happens(QUOTA).waits_until_due()
    assert story.now == 1000.0 + 15.0 * 1000 and "quota" in story.said
    assert begun(story).life.state is State.WAITING


def test_an_evicted_pod_is_replaced_by_its_job_and_the_work_goes_on() -> None:
    story = running()
    story.sees(story.job(active=1), after=60.0)
    assert story.life.state is State.WAITING
    story.waits_until_due().looks(Waiting(reason="its pod is starting (volumes, image)")).sees(story.job(**RUNS), after=1.0)
    assert story.life.state is State.RUNNING
    assert story.sees(story.job(**DONE), after=60.0).end.done


def test_a_job_that_the_hospital_deletes_starts_again_and_counts_as_no_failure() -> None:
    story = running()
    leaving = story.job()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    story.sees(leaving)
    assert (story.life.state, story.said, story.life.wake) == (State.WAITING, "its Job is being deleted", None)
    outcome = story.happens(GONE, after=30.0).end
    assert outcome.disrupted and "was deleted by somebody" in outcome.reason


def test_an_api_server_that_is_away_for_minutes_loses_no_running_work() -> None:
    story = begun().waits_until_due()
    for _ in range(600):
        story.happens(AWAY).waits_until_due()
    assert story.life.state is State.WAITING
    story.looks(None).sees(story.job(**RUNS)).sees(story.job(**DONE), after=3600.0)
    assert story.end.done


def test_an_api_server_that_is_away_from_the_beginning_is_waited_for_and_then_said() -> None:
    story = Story()
    outage = Outcome(exit_code=35, reason="the cluster: not reached (ConnectError)")
    story.happens(replace(AWAY, outcome=outage, waiting=Waiting(reason=outage.reason)))
    assert story.said == outage.reason
    while story.life.state is not State.ENDED:
        story.waits_until_due().happens(replace(AWAY, outcome=outage, waiting=Waiting(reason=outage.reason)))
        assert story.now < 1000.0 + PATIENCE.away + 2.0
    assert story.end == outage and story.now >= 1000.0 + PATIENCE.away


def test_hours_in_a_quota_do_not_make_one_lost_request_an_outage() -> None:
    story = Story()
    for _ in range(100):
        story.happens(QUOTA).waits_until_due()
    assert story.happens(AWAY).life.state is State.HELD


def test_rights_that_are_not_known_yet_are_waited_for_and_missed_anew_each_time() -> None:
    story = Story()
    story.happens(REFUSED)
    assert story.said == ERROR.reason
    story.waits_until_due().happens(REFUSED, after=10.0).waits_until_due()
    begun(story).waits_until_due().looks(Waiting(reason="no pod yet"))
    story.waits_until_due().happens(REFUSED, after=100.0)
    assert story.life.state is State.WAITING, "the first refusal is long over"
    assert story.waits_until_due().happens(REFUSED, after=PATIENCE.refusal).end == ERROR


def test_an_outage_between_two_refusals_lets_them_count_anew() -> None:
    story = Story().happens(REFUSED).waits_until_due().happens(AWAY, after=60.0).waits_until_due()
    assert story.happens(REFUSED).life.state is State.HELD


def test_a_job_past_its_deadline_is_late_and_says_what_it_waited_for() -> None:
    story = begun().waits_until_due().looks(Waiting(reason="no node can take its pod"))
    story.sees(story.job(**LATE), after=3600.0)
    assert story.asked[-1] is Action.CONCLUDE
    assert story.life.found is not None
    outcome = story.happens(concluded(failure(story.life.found, [], [], story.life.waiting))).end
    assert outcome.late and outcome.reason == "its Job ran into its deadline of 3600 s; it was still waiting: no node can take its pod"


def test_failed_work_is_concluded_also_when_the_server_goes_away_meanwhile() -> None:
    story = running()
    story.sees(story.job(**FAILED)).happens(AWAY).happens(MISSED)
    assert story.life.state is State.CONCLUDING
    assert story.waits_until_due().asked[-1] is Action.CONCLUDE
    assert story.life.found is not None
    outcome = story.happens(concluded(failure(story.life.found, [], ["error: datalist.json: no such file"]))).end
    assert outcome.exit_code == 11 and outcome.permanent


def test_an_image_that_cannot_be_pulled_is_given_up_after_five_minutes() -> None:
    pod = {"status": {"containerStatuses": [{"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}
    fault = Outcome(exit_code=19, reason=str(pull_fault(pod)))
    story = begun()
    while story.life.state is State.WAITING:
        story.waits_until_due().looks(Waiting(reason=fault.reason), fault)
    assert PATIENCE.fault <= story.now - 1002.0 <= PATIENCE.fault + 60.0
    assert (story.life.state, story.asked[-1]) == (State.STOPPING, Action.DELETE)
    assert story.happens(ACCEPTED).happens(GONE, after=1.0).end == fault


def test_an_image_that_comes_back_in_time_resets_the_count() -> None:
    story = begun().waits_until_due().looks(Waiting(reason="image"), FAULT).waits_until_due().looks(Waiting(reason="its pod is starting"))
    assert story.waits_until_due().looks(Waiting(reason="image"), FAULT, after=10_000.0).life.state is State.WAITING


def test_looks_get_rarer_and_never_end_however_long_it_waits() -> None:
    story = begun()
    pauses = []
    for _ in range(2000):
        before = story.now
        story.waits_until_due().looks(Waiting(reason="no node can take its pod"))
        pauses.append(story.now - before)
    assert pauses[:6] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0] and set(pauses[6:]) == {60.0}


def test_an_event_overtakes_a_look_and_does_not_hide_what_looks_have_found() -> None:
    story = begun().waits_until_due().looks(Waiting(reason="no node can take its pod")).waits_until_due()
    before = story.life.found
    assert before is not None
    story.sees(story.job(active=1))
    assert story.said == "no node can take its pod"
    story.happens(looked(before, Waiting(reason="of before the event")))
    assert story.said == "no node can take its pod"
    assert story.waits_until_due().asked[-1] is Action.LOOK


def test_stop_while_creating_deletes_what_was_created() -> None:
    story = Story().happens(STOP)
    assert (story.life.state, story.asked) == (State.WITHDRAWN, [Action.CREATE])
    begun(story)
    assert story.asked == [Action.CREATE, Action.DELETE]
    assert story.happens(ACCEPTED).happens(GONE).end == STOPPED


@pytest.mark.parametrize("answer", [AWAY, REFUSED, DENIED, QUOTA])
def test_stop_while_creating_ends_at_once_where_nothing_was_created(answer: Event) -> None:
    assert Story().happens(STOP).happens(answer).end == STOPPED


def test_stop_between_two_attempts_ends_at_once() -> None:
    assert Story().happens(QUOTA).happens(STOP).end.disrupted


def test_a_deletion_is_asked_for_until_the_object_is_gone() -> None:
    story = running().happens(STOP).happens(AWAY).waits_until_due()
    story.happens(ACCEPTED).waits_until_due().happens(ACCEPTED)
    assert (story.life.state, story.asked[-3:]) == (State.ENDING, [Action.DELETE] * 3)
    assert story.happens(GONE).end.disrupted


def test_work_that_is_done_before_its_deletion_arrives_is_done() -> None:
    story = running().happens(STOP)
    assert story.sees(story.job(**DONE)).end.done


def test_after_410_gone_a_listing_without_the_job_is_verified_before_it_is_believed() -> None:
    story = running().happens(MISSED)
    assert (story.life.state, story.asked[-1]) == (State.DOUBTED, Action.VERIFY)
    story.happens(AWAY).waits_until_due()
    assert story.asked[-2:] == [Action.VERIFY, Action.VERIFY]
    assert story.sees(story.job(**RUNS), answer=True).life.state is State.RUNNING, "the listing was older than the Job"
    assert "was deleted by somebody" in story.happens(MISSED).happens(GONE).end.reason


def test_an_event_is_faster_than_the_answer_to_the_creation() -> None:
    story = Story()
    story.sees(story.job(**RUNS)).sees(story.job(), answer=True)
    assert story.life.state is State.RUNNING, "the answer is older than the event"


def test_kueues_reasons_are_said_through_queue_admission_and_eviction() -> None:
    story = Story()
    queued = story.job()
    queued["metadata"]["labels"][QUEUE_LABEL] = "gpus"
    queued["spec"]["suspend"] = True
    story.sees(queued, answer=True)
    assert story.said == "queued by Kueue in queue 'gpus'"
    full = "couldn't assign flavors: insufficient unused quota for nvidia.com/gpu"
    workload = {"metadata": {}, "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": full}]}}
    story.waits_until_due().looks(why_waiting(queued, workloads=[workload]))
    assert story.said == f"queued by Kueue in queue 'gpus': {full}"
    admitted = copy.deepcopy(queued)
    admitted["spec"]["suspend"] = False
    story.sees(admitted, after=100.0)
    assert (story.said, story.life.looks) == ("no pod yet", 0), "another phase is looked at anew"
    story.sees({**admitted, "status": RUNS}).sees(queued)
    assert (story.life.state, story.said) == (State.WAITING, "queued by Kueue in queue 'gpus'")


# ---- the same machine carries a ManifestWork

NOTHING_IS_ASKED: Any = None  # in place of a cluster: a ManifestWork says everything itself


def manifest_work(request: WorkRequest, *, refusal: str | None = None, **feedback: Any) -> dict[str, Any]:
    """As the OCM hub has it once the agent has reported."""
    made = manifest_work_of(request)
    made["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    values = [{"name": key, "fieldValue": {"type": "String", "string": value}} for key, value in feedback.items()]
    applied = {"type": "Applied", "status": "True"} if refusal is None else {"type": "Applied", "status": "False", "message": refusal}
    reported = {"conditions": [applied], "statusFeedback": {"values": values}}
    return {**made, "status": {"conditions": [applied], "resourceStatus": {"manifests": [reported]}}}


@pytest.fixture
def wrapped() -> WorkRequest:
    return replace(REQUEST, entry=entry("manifestwork", cluster="clinic", job_template=TEMPLATE, executor="runner"))


def test_a_manifest_work_that_the_agent_refuses_is_given_up_only_when_that_lasts(wrapped: WorkRequest) -> None:
    story = Story("manifestwork", wrapped)
    story.sees(manifest_work(wrapped, refusal="not allowed to apply the resource jobs"), answer=True)
    assert "the hospital's cluster does not take the Job" in story.said
    began = story.now
    while story.life.state is State.WAITING:
        story.waits_until_due()
        assert story.life.found is not None
        story.happens(asyncio.run(story.carrier.look(NOTHING_IS_ASKED, story.life.found)))
    assert story.now - began >= PATIENCE.refusal
    outcome = story.happens(ACCEPTED).happens(GONE).end
    assert outcome.exit_code == 14
    assert "let service account 'runner' (dispatch.executor) create, get, update, patch and delete jobs" in outcome.reason
    assert "in namespace 'fedhelp-aachen'" in outcome.reason


def test_a_manifest_work_runs_and_fails_by_what_its_agent_reports(wrapped: WorkRequest) -> None:
    story = Story("manifestwork", wrapped)
    story.sees(manifest_work_of(wrapped) | {"metadata": manifest_work(wrapped)["metadata"]}, answer=True)
    assert "the hospital's agent has not fetched it yet" in story.said
    story.sees(manifest_work(wrapped), after=1.0)
    assert "only the hospital sees why" in story.said
    story.sees(manifest_work(wrapped, failed="True", failedMessage="failed with exit code 11"))
    assert story.asked[-1] is Action.CONCLUDE and story.life.found is not None
    outcome = story.happens(concluded(asyncio.run(story.carrier.conclude(NOTHING_IS_ASKED, story.life.found, None)))).end
    assert outcome.exit_code == 11 and "the hospital sees its log with: kubectl logs job/run-1-aachen-train-" in outcome.reason


# ---- the table of kinds


def test_each_kind_has_its_row_and_each_row_names_fields_that_there_are() -> None:
    assert set(DISPATCH_KINDS) == set(get_args(DispatchConfig.model_fields["kind"].annotation))
    for row in DISPATCH_KINDS.values():
        assert set(row.needs) <= set(row.fields) <= set(DispatchConfig.model_fields)


@pytest.mark.parametrize("kind", [kind for kind, row in DISPATCH_KINDS.items() if row.carrier is not None])
def test_what_a_carrier_keeps_of_an_object_is_all_that_it_reads(kind: str, wrapped: WorkRequest) -> None:
    carrier = carrier_of(kind)
    objects: Callable[[], list[dict[str, Any]]] = {
        "kubernetes": lambda: [Story().job(**status) for status in ({}, RUNS, DONE, FAILED, LATE)],
        "manifestwork": lambda: [manifest_work(wrapped, refusal="no"), manifest_work(wrapped, ready="1"), manifest_work(wrapped, failed="True")],
    }[kind]
    for found in objects():
        assert carrier.read(carrier.slim(found)) == carrier.read(found)
        assert carrier.waits(carrier.slim(found)) == carrier.waits(found)
        assert re.fullmatch(r"run-1-aachen-train-[0-9a-f]{12}", carrier.job(found)["metadata"]["name"])
