"""The round protocol: who writes what once, who is left out and why, and what a kill at any moment costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhelp_core.errors import AccessDenied, NotFound, PermanentError, QuorumLost, RunAborted, RunConflict, StoreUnavailable, WeightsError
from fedhelp_core.protocol import closing
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.documents import Commit, ModelScores, SiloEvaluation, SiloReport, SplitSizes, UpdateManifest
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.store.base import Store
from fedhelp_core.store.local import LocalStore
from fedhelp_core.weights.file import serialize_weights
from fedhelp_core.weights.header import Weights

Open = Callable[[], Store]
SILOS = ("amsterdam", "berlin", "cadiz")
SAMPLES = {"amsterdam": 30, "berlin": 10, "cadiz": 10}
CONFIG = "algorithm:\n  rounds: 3\n  temperature: 1.0\nsilos:\n- name: amsterdam\n- name: berlin\n"


def weights(value: float) -> Weights:
    return {"w": np.array([value, 2 * value], np.float32), "n": np.array(int(value) if np.isfinite(value) else 0, np.int64)}


def submit(run: Run, silo: str, round: int, value: float, **more: Any) -> UpdateManifest:
    before = run.commit(round - 1)
    facts: dict[str, Any] = {
        "trained_from": before.global_sha256 if before is not None else "0" * 64, "architecture": "net", "samples": 10, "loss": 0.5,
        "metrics": {"seconds": 1.5}, **more}
    return run.submit_update(silo, round, weights(value), **facts)


def close(run: Run, round: int = 1, silos: tuple[str, ...] = SILOS, **more: Any) -> Commit:
    own = {field.name for field in fields(Terms)} & more.keys()
    terms = Terms(**{"max_bytes": 10**6, **{name: more.pop(name) for name in own}})
    settings: dict[str, Any] = {"min_silos": 1, "deadline_s": 20.0, **more}
    return close_round(run, round, {silo: SAMPLES.get(silo, 10) for silo in silos}, terms=terms, **settings)


def value_of(run: Run, commit: Commit) -> list[float]:
    found: list[float] = run.global_weights(commit, max_bytes=10**6)["w"].tolist()
    return found


@pytest.fixture
def run(store: Store) -> Run:
    """A run with its start committed, in each kind of store."""
    started = Run(store, "run-1")
    started.initialise(weights(0), "net")
    return started


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    started = Run(LocalStore(tmp_path / "store"), "run-1")
    started.initialise(weights(0), "net")
    return started


class TestFreezing:
    def test_the_same_config_again_resumes(self, store: Store) -> None:
        Run(store, "run-1").freeze(CONFIG)
        Run(store, "run-1").freeze(CONFIG)
        assert Run(store, "run-1").federation_yaml() == CONFIG

    def test_another_config_is_a_conflict_that_names_the_fields(self, store: Store) -> None:
        Run(store, "run-1").freeze(CONFIG)
        with pytest.raises(RunConflict, match=r"algorithm.rounds: 3 expected, got 4, silos\[1\].name: 'berlin' expected, got 'bonn'"):
            Run(store, "run-1").freeze(CONFIG.replace("rounds: 3", "rounds: 4").replace("berlin", "bonn"))

    def test_a_run_that_was_never_started_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="no run 'run-1' in"):
            Run(store, "run-1").federation_yaml()

    @pytest.mark.parametrize("run_id", ["", "Run", "a/b", "../x", "-a", "a" * 64])
    def test_what_is_no_run_id_is_refused(self, tmp_path: Path, run_id: str) -> None:
        with pytest.raises(PermanentError, match="run id"):
            Run(LocalStore(tmp_path), run_id)


class TestStart:
    def test_the_second_start_adopts_the_first(self, store: Store) -> None:
        first = Run(store, "run-1").initialise(weights(1), "net")
        second = Run(store, "run-1").initialise(weights(2), "net")
        assert second == first
        assert first.round == 0
        assert first.participants == ()
        assert value_of(Run(store, "run-1"), second) == [1.0, 2.0]

    def test_there_is_no_commit_before_the_start(self, store: Store) -> None:
        assert Run(store, "run-1").latest_commit() is None
        assert Run(store, "run-1").commit(0) is None


class TestRound:
    def test_three_updates_make_the_next_global_model(self, run: Run, open_again: Open) -> None:
        for silo, value in zip(SILOS, (1, 2, 6), strict=True):
            submit(run, silo, 1, value)
        commit = close(run)
        assert value_of(run, commit) == [3.0, 6.0]
        assert run.global_weights(commit, max_bytes=10**6)["n"] == 6
        assert commit.participants == SILOS
        assert commit.shares == dict.fromkeys(SILOS, 1 / 3)
        assert commit.metrics["berlin"] == {"seconds": 1.5, "samples": 10.0, "loss": 0.5}
        assert commit.previous_sha256 == run.commit(0).global_sha256  # type: ignore[union-attr]
        assert (commit.absent, commit.refused) == ({}, {})
        assert Run(open_again(), "run-1").latest_commit() == commit
        assert run.global_file(commit, max_bytes=10**6).read_bytes() == serialize_weights(run.global_weights(commit, max_bytes=10**6), "net")

    def test_samples_weigh_when_asked_to(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 0)
        submit(run, "berlin", 1, 4, samples=10**9)  # what counts is what the silos' checks counted
        commit = close(run, silos=SILOS[:2], weighting="samples")
        assert commit.shares == {"amsterdam": 0.75, "berlin": 0.25}
        assert commit.metrics["berlin"]["samples"] == 10
        assert value_of(run, commit) == [1.0, 2.0]

    def test_the_order_of_arrival_does_not_matter(self, tmp_path: Path) -> None:
        values = {"amsterdam": 1e8, "berlin": 1.0, "cadiz": -1e8}
        hashes = set()
        for number, order in enumerate([SILOS, SILOS[::-1], ("berlin", "cadiz", "amsterdam")]):
            run = Run(LocalStore(tmp_path / str(number)), "run-1")
            run.initialise(weights(0), "net")
            closing = threading.Thread(target=close, args=(run,))
            closing.start()
            for silo in order:
                submit(run, silo, 1, values[silo])
                time.sleep(0.03)
            closing.join(10)
            hashes.add(run.latest_commit().global_sha256)  # type: ignore[union-attr]
        assert len(hashes) == 1

    def test_a_committed_round_returns_at_once_and_changes_nothing(self, run: Run, open_again: Open) -> None:
        submit(run, "berlin", 1, 1)
        first = close(run, silos=("berlin",))
        again = Run(open_again(), "run-1")
        assert close(again, silos=SILOS, min_silos=3, deadline_s=0) == first

    @pytest.mark.slow  # a bucket is looked at every 0.2 s at most
    def test_rounds_follow_each_other(self, run: Run, open_again: Open) -> None:
        for number in range(1, 8):
            submit(run, "berlin", number, number)
            close(run, number, ("berlin",))
            assert Run(open_again(), "run-1").latest_commit().round == number  # type: ignore[union-attr]
        assert run.commit(3).round == 3  # type: ignore[union-attr]
        assert run.commit(8) is None

    def test_a_round_cannot_be_closed_before_the_one_before(self, run: Run) -> None:
        with pytest.raises(NotFound, match="round 2 cannot be closed before round 1"):
            close(run, 2)

    def test_weights_can_come_from_a_file(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "update.safetensors"
        path.write_bytes(serialize_weights(weights(5), "net"))
        start = run.commit(0)
        assert start is not None
        run.submit_update(
            "berlin", 1, path, trained_from=start.global_sha256, architecture="net", samples=1, loss=None, metrics={})
        assert value_of(run, close(run, silos=("berlin",))) == [5.0, 10.0]

    def test_updates_of_closed_rounds_are_dropped_but_for_their_manifests(self, run: Run) -> None:
        for number in (1, 2, 3):
            submit(run, "berlin", number, number)
            close(run, number, ("berlin",), keep_updates=number == 3)
        names = [key.split("/")[-1].split("-")[0] for key in run.store.list("runs/run-1/rounds/1/updates/")]
        assert names == ["berlin.json"]
        assert run.update("berlin", 1) is not None
        assert len(run.store.list("runs/run-1/rounds/2/updates/")) == 2  # kept by the call that closed round 3
        assert len(run.store.list("runs/run-1/rounds/3/updates/")) == 2

    def test_events_tell_what_happened(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 1)
        submit(run, "berlin", 1, float("nan"))
        run.mark_absent("cadiz", 1, "GPU taken away")
        events: list[dict[str, object]] = []
        close(run, on_event=events.append)
        told = [(event["event"], event.get("silo")) for event in events]
        assert told == [("update_accepted", "amsterdam"), ("update_refused", "berlin"), ("silo_absent", "cadiz"), ("round_committed", None)]
        assert {event["round"] for event in events} == {1}


class TestAbsence:
    def test_who_is_late_is_left_out_and_comes_back(self, local_run: Run) -> None:
        submit(local_run, "amsterdam", 1, 2)
        started = time.monotonic()
        first = close(local_run, silos=SILOS[:2], deadline_s=0.2)
        assert 0.2 <= time.monotonic() - started < 2
        assert first.participants == ("amsterdam",)
        assert first.absent == {"berlin": "no update within 0.2 s (protocol.round_deadline)"}
        submit(local_run, "berlin", 1, 100)  # too late for round 1
        assert local_run.commit(1) == first
        for silo in SILOS[:2]:
            submit(local_run, silo, 2, 4)
        assert close(local_run, 2, SILOS[:2]).participants == SILOS[:2]

    def test_a_marked_silo_is_not_waited_for(self, run: Run) -> None:
        run.mark_absent("berlin", 1, "DataError: no images")
        run.mark_absent("berlin", 1, "a second reason")
        submit(run, "amsterdam", 1, 2)
        started = time.monotonic()
        commit = close(run, silos=SILOS[:2], deadline_s=600)
        assert time.monotonic() - started < 5
        assert commit.absent == {"berlin": "DataError: no images"}
        assert run.absences(1) == {"berlin": "DataError: no images"}
        assert run.absences(2) == {}

    def test_an_update_counts_more_than_a_marker(self, run: Run) -> None:
        run.mark_absent("berlin", 1, "taken for dead")
        submit(run, "berlin", 1, 2)
        assert close(run, silos=("berlin",)).participants == ("berlin",)

    def test_what_arrived_by_the_deadline_counts_even_if_the_hub_looks_later(self, run: Run) -> None:
        for silo in SILOS:
            submit(run, silo, 1, 1)
        assert close(run, deadline_s=0).participants == SILOS


class TestQuorum:
    def test_too_few_updates_end_the_run_for_everyone(self, run: Run, open_again: Open) -> None:
        run.mark_absent("berlin", 1, "out of memory")
        submit(run, "amsterdam", 1, 1)
        with pytest.raises(QuorumLost, match=r"round 1: 1 of 2 silos sent a good update, at least 2 .* berlin: out of memory"):
            close(run, silos=SILOS[:2], min_silos=2)
        with pytest.raises(RunAborted, match="run 'run-1' was ended: round 1: 1 of 2"):
            Run(open_again(), "run-1").raise_if_aborted()

    @pytest.mark.parametrize("body", [b"<html>", b'{"reason": 3}', b'{"reason": "' + b"x" * 600 + b'"}', b"[" * 10_000])
    def test_a_marker_that_cannot_be_read_still_says_that_the_silo_will_not_answer(self, local_run: Run, body: bytes) -> None:
        local_run.store.put(local_run.keys.absence("berlin", 1), body)
        submit(local_run, "amsterdam", 1, 1)
        commit = close(local_run, silos=("amsterdam", "berlin"), deadline_s=600)
        assert commit.participants == ("amsterdam",)
        assert commit.absent["berlin"].startswith(local_run.keys.absence("berlin", 1)) and len(commit.absent["berlin"]) <= 500

    def test_a_quorum_out_of_reach_is_not_waited_for(self, run: Run) -> None:
        run.mark_absent("berlin", 1, "gone")
        started = time.monotonic()
        with pytest.raises(QuorumLost):
            close(run, min_silos=3, deadline_s=600)
        assert time.monotonic() - started < 5

    def test_after_clearing_the_abort_the_refused_may_answer_anew(self, run: Run) -> None:
        submit(run, "berlin", 1, float("inf"))
        with pytest.raises(QuorumLost):
            close(run, silos=("berlin",))
        run.clear_abort()
        assert run.update("berlin", 1) is None
        submit(run, "berlin", 1, 3)
        assert value_of(run, close(run, silos=("berlin",))) == [3.0, 6.0]


class TestAbort:
    def test_the_first_reason_stays(self, run: Run) -> None:
        assert run.abort_reason() is None
        run.raise_if_aborted()
        run.abort("stopped in the UI")
        run.abort("something else")
        assert run.abort_reason() == "stopped in the UI"

    def test_an_abort_ends_the_hub_and_the_silos_that_wait(self, run: Run) -> None:
        threading.Timer(0.1, run.abort, ["stopped in the UI"]).start()
        with pytest.raises(RunAborted, match="stopped in the UI"):
            close(run)
        with pytest.raises(RunAborted, match="stopped in the UI"):
            run.wait_for_commit(1)

    def test_clearing_it_drops_the_absences_of_open_rounds_only(self, run: Run) -> None:
        run.mark_absent("berlin", 1, "a")
        submit(run, "amsterdam", 1, 1)
        close(run, silos=SILOS[:2])
        for number in (2, 3):
            run.mark_absent("berlin", number, "b")
        run.abort("why")
        run.clear_abort()
        assert run.abort_reason() is None
        assert [run.absences(number) for number in (1, 2, 3)] == [{"berlin": "a"}, {}, {}]


class TestSilosWaiting:
    def test_a_silo_gets_the_latest_commit(self, run: Run, open_again: Open) -> None:
        for number in (1, 2):
            submit(run, "berlin", number, number)
            close(run, number, ("berlin",))
        assert Run(open_again(), "run-1").wait_for_commit(1).round == 2

    def test_a_silo_wakes_when_the_round_is_committed(self, local_run: Run) -> None:
        submit(local_run, "berlin", 1, 1)
        threading.Timer(0.1, close, [Run(local_run.store, "run-1"), 1, ("berlin",)]).start()
        started = time.monotonic()
        assert local_run.wait_for_commit(1, timeout=10).round == 1
        assert time.monotonic() - started < 1

    def test_the_timeout_is_an_error_of_its_own(self, local_run: Run) -> None:
        with pytest.raises(NotFound, match=r"round 1 was not committed within 0\.05 s"):
            local_run.wait_for_commit(1, timeout=0.05)


class TestRefusal:
    @pytest.mark.parametrize(("change", "reason"), [
        ({"samples": 0}, "samples: input should be greater than or equal to 1, got 0"),
        ({"loss": float("nan")}, "loss: input should be a finite number, got nan"),
        ({"metrics": {f"m{n}": 0.0 for n in range(65)}}, "metrics: dictionary should have at most 64 items"),
        ({"architecture": "resnet8"}, "weights of architecture 'resnet8', 'net' expected"),
    ])
    def test_a_manifest_that_makes_no_sense_is_refused(self, run: Run, change: dict[str, Any], reason: str) -> None:
        submit(run, "amsterdam", 1, 1)
        submit(run, "berlin", 1, 100, **change)
        commit = close(run, silos=SILOS[:2])
        assert commit.participants == ("amsterdam",)
        assert reason in commit.refused["berlin"]
        assert value_of(run, commit) == [1.0, 2.0]

    def test_metrics_that_are_not_finite_are_left_out(self, run: Run) -> None:
        assert submit(run, "berlin", 1, 1, metrics={"auroc": float("nan"), "accuracy": 0.5}).metrics == {"accuracy": 0.5}

    @pytest.mark.parametrize(("body", "reason"), [
        (b"not json", "invalid JSON"), (b"[]", "input should be an object"), (b"{}", "field required"), (b"\xff" * 50, "invalid JSON"),
        (b"[" * 10_000, "JSON"), (b" " * (2**20 + 1), "at most 1048576 expected"),
    ])
    def test_a_manifest_that_is_none_is_refused(self, local_run: Run, body: bytes, reason: str) -> None:
        submit(local_run, "amsterdam", 1, 1)
        local_run.store.put_new("runs/run-1/rounds/1/updates/berlin.json", body)
        assert local_run.answered("berlin", 1)
        assert reason in close(local_run, silos=SILOS[:2]).refused["berlin"]

    @pytest.mark.parametrize(("field", "value", "reason"), [
        ("silo", "amsterdam", "the manifest is of silo 'amsterdam', round 1"), ("round", 2, "round 2"),
        ("weights", "runs/run-1/federation.yaml", "weights should be"), ("weights", "../../etc/passwd", "weights should be"),
        ("sha256", "0" * 64, "weights should be"), ("sha256", "x", "sha256"), ("samples", "10", "samples"), ("samples", True, "samples"),
        ("samples", 2**60, "samples"), ("metrics", {"a": "b"}, r"metrics.a"), ("loss", 1e999, "loss"),
    ])
    def test_a_forged_manifest_is_refused(self, local_run: Run, field: str, value: object, reason: str) -> None:
        submit(local_run, "amsterdam", 1, 1)
        submit(local_run, "berlin", 1, 1)
        key = "runs/run-1/rounds/1/updates/berlin.json"
        forged = {**json.loads(local_run.store.get(key)), field: value}
        local_run.store.put(key, json.dumps(forged).encode())
        assert reason in close(local_run, silos=SILOS[:2]).refused["berlin"]

    def test_tampered_weights_are_refused(self, local_run: Run) -> None:
        submit(local_run, "amsterdam", 1, 1)
        manifest = submit(local_run, "berlin", 1, 7)
        local_run.store.put(manifest.weights, serialize_weights(weights(8), "net"))
        assert "tampered with or damaged" in close(local_run, silos=SILOS[:2]).refused["berlin"]

    def test_missing_weights_are_refused(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 1)
        run.store.delete(submit(run, "berlin", 1, 7).weights)
        assert "no such object" in close(run, silos=SILOS[:2]).refused["berlin"]

    def test_too_large_or_too_far_an_update_is_refused(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 1)
        submit(run, "berlin", 1, 10)
        commit = close(run, silos=SILOS[:2], max_norm=3.0)  # √5 is below, 10·√5 is not
        assert commit.participants == ("amsterdam",)
        assert "L2 norm of 22.3607, at most 3" in commit.refused["berlin"]

    def test_too_large_an_update_is_refused(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 1)
        start = run.commit(0)
        assert start is not None
        size = run.store.size(start.global_key)
        assert size is not None
        larger = {"w": np.zeros(10**4, np.float32)}
        run.submit_update("berlin", 1, larger, trained_from=start.global_sha256, architecture="net", samples=1, loss=0.5, metrics={})
        assert f"at most {size} expected" in close(run, silos=SILOS[:2], max_bytes=size).refused["berlin"]

    def test_who_moved_much_farther_than_the_others_is_refused_and_named(self, run: Run) -> None:
        for silo, value in zip(SILOS, (1, 100, 1.5), strict=True):
            submit(run, silo, 1, value)
        commit = close(run, max_norm_ratio=8.0)
        assert commit.participants == ("amsterdam", "cadiz")
        assert "its trained weights moved 66.7 times as far as is usual among this round's silos" in commit.refused["berlin"]
        assert commit.norms["amsterdam"].trainable == pytest.approx(5**0.5)
        assert commit.norms["amsterdam"].statistics == 0

    def test_a_quorum_counts_who_is_left(self, run: Run) -> None:
        for silo, value in zip(SILOS, (1, 100, 1.5), strict=True):
            submit(run, silo, 1, value)
        with pytest.raises(QuorumLost, match=r"2 of 3 silos sent a good update, at least 3 .* berlin: its trained weights moved"):
            close(run, max_norm_ratio=8.0, min_silos=3)

    def test_an_update_of_another_round_is_refused(self, local_run: Run) -> None:
        old = submit(local_run, "berlin", 1, 1)
        first = close(local_run, silos=("berlin",))
        submit(local_run, "amsterdam", 2, 1)
        submit(local_run, "berlin", 2, 1, trained_from=old.trained_from)
        submit(local_run, "berlin", 3, 1)  # for a round to come, whose model nobody knows yet
        second = close(local_run, 2, SILOS[:2])
        assert second.participants == ("amsterdam",)
        assert f"trained_from: the model that round 2 starts from ({first.global_sha256[:12]}...) expected" in second.refused["berlin"]
        submit(local_run, "amsterdam", 3, 1)
        assert "trained_from" in close(local_run, 3, SILOS[:2]).refused["berlin"]

    def test_a_metric_that_the_method_does_not_have_is_refused(self, run: Run) -> None:
        submit(run, "amsterdam", 1, 1)
        submit(run, "berlin", 1, 1, metrics={"sharpe_ratio": 3.0})
        commit = close(run, silos=SILOS[:2], metrics={"seconds", "private_loss"})
        assert "metrics: one of private_loss, seconds expected, got 'sharpe_ratio'" in commit.refused["berlin"]

    @pytest.mark.parametrize("rests", [True, False])
    def test_what_is_averaged_is_what_was_checked(self, local_run: Run, monkeypatch: pytest.MonkeyPatch, rests: bool) -> None:
        """A file that its silo writes to between check and average is checked again; one that never rests is refused."""
        for silo, value in zip(SILOS, (1, 5, 3), strict=True):
            submit(local_run, silo, 1, value)
        manifest = local_run.update("berlin", 1)
        assert manifest is not None
        path = local_run.store.fetch(manifest.weights, 10**6)
        good, bad = path.read_bytes(), serialize_weights(weights(1e6), "net")
        plain = closing.compute_file
        turns: list[int] = []

        def average(*arguments: Any, **more: Any) -> str:
            turns.append(1)
            changed = not rests or len(turns) == 1
            if changed:
                path.write_bytes(bad)
            sha256 = plain(*arguments, **more)
            if changed:
                path.write_bytes(good)
            return sha256

        monkeypatch.setattr(closing, "compute_file", average)
        commit = close(local_run)
        if rests:
            assert value_of(local_run, commit) == [3.0, 6.0] and commit.refused == {}
        else:
            assert value_of(local_run, commit) == [2.0, 4.0] and "is written to again and again" in commit.refused["berlin"]

    def test_a_file_that_is_gone_before_the_average_leaves_its_silo_out(self, local_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        for silo in SILOS:
            manifest = submit(local_run, silo, 1, 2)
        plain = closing.compute_file

        def average(*arguments: Any, **more: Any) -> str:
            local_run.store.delete(manifest.weights)
            return plain(*arguments, **more)

        monkeypatch.setattr(closing, "compute_file", average)
        commit = close(local_run)
        assert commit.participants == SILOS[:2] and "no such" in commit.refused["cadiz"]

    @pytest.mark.parametrize("error", [AccessDenied("the hub's key has expired"), StoreUnavailable("server away")])
    def test_the_hubs_own_trouble_refuses_nobody(self, local_run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        submit(local_run, "berlin", 1, 1)

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(local_run.store, "fetch", fail)
        with pytest.raises(type(error)):
            close(local_run, silos=("berlin",))
        monkeypatch.undo()
        assert close(local_run, silos=("berlin",)).refused == {}

    @pytest.mark.parametrize("silo", ["", "Berlin", "a/b", "..", "a" * 64])
    def test_what_is_no_silo_name_is_refused(self, local_run: Run, silo: str) -> None:
        for call in (lambda: submit(local_run, silo, 1, 1), lambda: local_run.mark_absent(silo, 1, "x"),
                     lambda: local_run.evaluation(silo)):
            with pytest.raises(PermanentError, match="silo"):
                call()


class TestAdoption:
    def test_the_first_answer_of_a_silo_stays(self, run: Run, open_again: Open) -> None:
        first = submit(run, "berlin", 1, 1)
        assert submit(Run(open_again(), "run-1"), "berlin", 1, 2) == first
        assert value_of(run, close(run, silos=("berlin",))) == [1.0, 2.0]

    def test_a_manifest_written_meanwhile_is_adopted(self, run: Run, open_again: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        first = submit(Run(open_again(), "run-1"), "berlin", 1, 1)
        looks = iter([None])
        plain = run.update
        monkeypatch.setattr(run, "update", lambda *arguments: next(looks) if looks.__length_hint__() else plain(*arguments))
        assert submit(run, "berlin", 1, 2) == first

    def test_of_two_hubs_the_first_commit_stays(self, run: Run, open_again: Open) -> None:
        for silo in SILOS:
            submit(run, silo, 1, 1)
        hubs = [Run(open_again(), "run-1") for _ in range(4)]
        commits: list[Commit] = []
        threads = [threading.Thread(target=lambda hub=hub: commits.append(close(hub))) for hub in hubs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(commits) == 4
        assert all(commit == commits[0] for commit in commits)

    def test_a_hub_that_waits_adopts_another_hubs_commit(self, local_run: Run) -> None:
        submit(local_run, "berlin", 1, 1)
        patient = Run(local_run.store, "run-1")
        found: list[Commit] = []
        waiting = threading.Thread(target=lambda: found.append(close(patient, silos=SILOS, min_silos=3)))
        waiting.start()
        time.sleep(0.05)
        first = close(local_run, silos=("berlin",))
        waiting.join(10)
        assert found == [first]


class TestKills:
    def test_a_silo_killed_between_weights_and_manifest_answers_again(self, local_run: Run) -> None:
        child = os.fork()
        if child == 0:
            store = local_run.store
            plain = store.put_new

            def killed_before_the_manifest(key: str, body: bytes | Path) -> bool:
                if key.endswith(".json"):
                    os.kill(os.getpid(), 9)
                return plain(key, body)

            store.put_new = killed_before_the_manifest  # type: ignore[method-assign]
            submit(local_run, "berlin", 1, 5)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert [key.endswith(".safetensors") for key in local_run.store.list("runs/run-1/rounds/1/updates/")] == [True]
        assert not local_run.answered("berlin", 1)
        assert local_run.update("berlin", 1) is None
        submit(local_run, "berlin", 1, 6)
        assert value_of(local_run, close(local_run, silos=("berlin",))) == [6.0, 12.0]
        close_round_again = close(Run(local_run.store, "run-1"), silos=("berlin",))
        assert close_round_again.participants == ("berlin",)

    @pytest.mark.parametrize("fatal_write", range(2))
    def test_a_hub_killed_while_it_closes_a_round_ends_in_the_same_hash(self, tmp_path: Path, fatal_write: int) -> None:
        hashes = []
        for killed in (False, True):
            run = Run(LocalStore(tmp_path / str(killed)), "run-1")
            run.initialise(weights(0), "net")
            for silo, value in zip(SILOS, (0.1, 0.2, 0.3), strict=True):
                submit(run, silo, 1, value)
            if killed:
                child = multiprocessing.get_context("fork").Process(target=_close_and_die, args=(run, fatal_write))
                child.start()
                child.join(20)
                assert child.exitcode == -9
                assert run.commit(1) is None
            hashes.append(close(run).global_sha256)
        assert hashes[0] == hashes[1]


def _close_and_die(run: Run, fatal_write: int) -> None:
    """Close round 1, but end by SIGKILL just before the model (0) or the commit (1) gets its name."""
    left = [fatal_write]
    plain = os.link

    def link(*arguments: Any) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        left[0] -= 1
        plain(*arguments)

    os.link = link
    close(run)


def report(number: int) -> SiloReport:
    return SiloReport(
        silo="berlin", samples=SplitSizes(training=number, validation=0, test=4), training_class_counts=[number, 0], test_sha256="0" * 64,
        start_sha256="1" * 64)


def evaluation(number: int) -> SiloEvaluation:
    scores = ModelScores(scores={"accuracy": number / 4}, confusion=[[number, 0], [0, 1]])
    return SiloEvaluation(
        silo="berlin", kind="small", round=1, global_sha256="0" * 64, test_samples=4, test_sha256="1" * 64, deployed="proxy",
        models={"proxy": scores})


class TestReports:
    def test_reports_and_evaluations_are_written_once(self, run: Run) -> None:
        assert run.silo_report("berlin") is None and not run.has_silo_report("berlin")
        assert run.evaluation("berlin") is None and not run.has_evaluation("berlin")
        for number in (1, 2):
            run.write_silo_report(report(number))
            run.write_evaluation(evaluation(number))
        assert run.silo_report("berlin") == report(1) and run.has_silo_report("berlin")
        assert run.evaluation("berlin") == evaluation(1) and run.has_evaluation("berlin")

    def test_what_another_silo_says_of_itself_is_not_taken_for_this_ones(self, local_run: Run) -> None:
        local_run.write_evaluation(evaluation(1))
        local_run.store.put("runs/run-1/evaluation/paris.json", local_run.store.get("runs/run-1/evaluation/berlin.json"))
        with pytest.raises(PermanentError, match=r"evaluation/paris\.json: silo: 'paris' expected, got 'berlin'"):
            local_run.evaluation("paris")

    @pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff"])
    def test_a_damaged_report_is_named(self, local_run: Run, body: bytes) -> None:
        local_run.store.put("runs/run-1/evaluation/berlin.json", body)
        with pytest.raises(PermanentError, match=r"runs/run-1/evaluation/berlin\.json"):
            local_run.evaluation("berlin")


class TestDamagedCommits:
    def test_a_commit_of_another_round_is_tampering(self, local_run: Run) -> None:
        local_run.store.put("runs/run-1/rounds/1/commit.json", local_run.store.get("runs/run-1/rounds/0/commit.json"))
        with pytest.raises(PermanentError, match="says that it is of round 0"):
            Run(local_run.store, "run-1").commit(1)

    def test_a_global_model_that_was_changed_is_noticed(self, local_run: Run) -> None:
        commit = local_run.commit(0)
        assert commit is not None
        local_run.store.put(commit.global_key, serialize_weights(weights(9), "net"))
        with pytest.raises(WeightsError, match="tampered with or damaged"):
            local_run.global_weights(commit, max_bytes=10**6)
        with pytest.raises(PermanentError, match="at most 10 expected"):
            local_run.global_weights(commit, max_bytes=10)

    @pytest.mark.parametrize(("change", "what"), [
        ({"global_key": "runs/run-1/rounds/1/global-0000000000000000.safetensors"}, "global_key"), ({"global_key": "runs/other/model"}, "global_key"),
        ({"absent": {"berlin": "says who?"}}, "the start has no participants"), ({"participants": ["berlin"]}, "the start has no participants")])
    def test_a_start_that_no_silo_writes_is_tampering(self, local_run: Run, change: dict[str, Any], what: str) -> None:
        key = local_run.keys.commit(0)
        local_run.store.put(key, json.dumps({**json.loads(local_run.store.get(key)), **change}).encode())
        with pytest.raises(PermanentError, match=rf"commit\.json: {what}.* the store was tampered with"):
            Run(local_run.store, "run-1").commit(0)
