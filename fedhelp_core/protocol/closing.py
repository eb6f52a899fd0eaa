"""How the hub closes a round: wait for the updates, check each, average them, commit. Called by aggregation, round after round.

Killed at any moment and called again, or called by two hubs at once, it ends with the same commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from fedhelp_core.algorithm.averaging import shares_of
from fedhelp_core.errors import AccessDenied, ConfigError, NotFound, PermanentError, QuorumLost
from fedhelp_core.protocol.averaging import average_files
from fedhelp_core.protocol.documents import MAX_REASON, Commit, UpdateManifest, utc_now
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.waiting import Poller
from fedhelp_core.weights.check import check_weights_file

OnEvent = Callable[[dict[str, object]], None]
"""Called with {"event": "update_accepted" | "update_refused" | "silo_absent" | "round_committed", "round": r, …}."""


def close_round(
    run: Run, round: int, silos: Sequence[str], *, min_silos: int, deadline_s: float, max_update_bytes: int, max_update_norm: float | None = None,
    weighting: Literal["uniform", "samples"] = "uniform", on_event: OnEvent | None = None, workdir: Path | None = None, keep_updates: bool = False,
) -> Commit:
    """Wait for the updates of `silos`, check each, average them in the order of `silos`, and commit the round. For the hub.

    Ends as soon as every silo has answered or is marked absent, or `deadline_s` seconds after this call began to wait; who
    is late is left out of this round only. A committed round returns at once, and two hubs closing the same round end with
    the same commit. `workdir`: where the average (one model) is written before it goes to the store; null: the
    store's own folder where it has one, else the system's. `keep_updates`: False removes the weights that silos sent to the
    round before, which its commit has made useless, while this round's silos train: they say more about one hospital than
    an average does, and S silos times R rounds of them fill a disk. Their manifests and hashes stay.

    Raises:
        QuorumLost: fewer than `min_silos` good updates; the run is aborted with that reason. Refused updates' manifests are
            removed, so that those silos can answer anew once the abort is cleared.
        RunAborted: somebody else ended the run.
        NotFound: the round before is not committed.
    """
    if (known := run.commit(round)) is not None:
        return known
    previous = run.commit(round - 1)
    if previous is None:
        raise NotFound(f"run {run.run_id!r}: round {round} cannot be closed before round {round - 1} is committed")
    if not keep_updates:
        run.drop_weights(round - 1)
    closing = _Closing(run, round, silos, previous, max_update_bytes, max_update_norm, on_event or (lambda _event: None))
    try:
        return closing.wait(max(1, min_silos), deadline_s) or closing.commit(weighting, workdir)
    except NotFound:  # another hub was faster, and has removed what this one was about to average
        if (adopted := run.commit(round)) is None:
            raise
        return adopted
    finally:
        closing.release()


class _Closing:
    """One round being closed: who has answered, who will not."""

    def __init__(
        self, run: Run, round: int, silos: Sequence[str], previous: Commit, max_bytes: int, max_norm: float | None, on_event: OnEvent,
    ) -> None:
        self._run = run
        self._round = round
        self._silos = tuple(silos)
        self._previous = previous
        self._spec = previous.spec
        self._max_bytes = max_bytes
        self._max_norm = max_norm
        self._reference = run.global_file(previous) if max_norm is not None else None
        self._on_event = on_event
        self._pending = list(silos)
        self._manifests: dict[str, UpdateManifest] = {}
        self._files: dict[str, Path] = {}
        self._absent: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def wait(self, min_silos: int, deadline_s: float) -> Commit | None:
        """Look until nobody is pending, the deadline is over, or too few can answer; a commit if another hub was faster."""
        until = time.monotonic() + deadline_s
        poller = Poller(self._run.store)
        while True:
            over = time.monotonic() >= until  # looked at first, so that whoever answered by then is still taken in
            if (adopted := self._look(poller)) is not None:
                return adopted
            if len(self._manifests) + len(self._pending) < min_silos:
                self._lose_quorum(min_silos)
            if not self._pending:
                return None
            if over:
                self._leave_out_the_late(deadline_s)
            else:
                poller.pause(until=until)

    def commit(self, weighting: Literal["uniform", "samples"], workdir: Path | None) -> Commit:
        """Average the good updates and make the round real."""
        participants = [silo for silo in self._silos if silo in self._manifests]
        shares = shares_of([self._manifests[silo].samples for silo in participants], weighting)
        key, sha256 = self._average(participants, shares, workdir)
        commit = self._run.make_real(Commit(
            round=self._round, global_key=key, global_sha256=sha256, spec=self._previous.spec, participants=tuple(participants),
            shares=dict(zip(participants, shares, strict=True)), absent=_in_order(self._absent, self._silos),
            refused=_in_order(self._refused, self._silos), metrics={silo: _metrics(self._manifests[silo]) for silo in participants},
            previous_sha256=self._previous.global_sha256, created=utc_now()))
        self._tell("round_committed", participants=list(commit.participants), global_sha256=commit.global_sha256)
        return commit

    def release(self) -> None:
        """Drop local copies of what came from a bucket."""
        for path in [*self._files.values(), *([self._reference] if self._reference else [])]:
            self._run.store.release(path)

    def _look(self, poller: Poller) -> Commit | None:
        """Take in what has arrived. One stat per pending silo and kind of object in a folder, one listing in a bucket."""
        run, round = self._run, self._round
        if run.is_committed(round):
            return run.commit(round)
        run.raise_if_aborted()
        keys = {run.keys.update(silo, round): silo for silo in self._pending}
        markers = {run.keys.absence(silo, round): silo for silo in self._pending}
        there = run.store.present([*keys, *markers], prefix=run.keys.round(round))
        for key, silo in keys.items():
            if key in there:
                self._pending.remove(silo)
                self._take_in(silo)
                poller.reset()
        for marker, silo in markers.items():
            if marker in there and silo in self._pending:
                self._pending.remove(silo)
                self._leave_out(silo, self._why_absent(silo))
        return None

    def _why_absent(self, silo: str) -> str:
        """What the marker says; one that cannot be read means the same."""
        try:
            return self._run.absence(silo, self._round) or "no reason given"
        except (AccessDenied, ConfigError):
            raise  # the hub's own trouble with the store
        except PermanentError as e:
            return str(e)[:MAX_REASON]

    def _take_in(self, silo: str) -> None:
        """Check a silo's update; a bad one is refused with the reason, and its silo counts as absent."""
        try:
            manifest = self._run.update(silo, self._round)
            if manifest is None:
                raise NotFound("the manifest was there and is gone")
            self._check(manifest)
        except (AccessDenied, ConfigError):
            raise  # the hub's own trouble with the store, not the silo's fault
        except PermanentError as e:
            self._refused[silo] = str(e)[:MAX_REASON]
            self._tell("update_refused", silo=silo, reason=self._refused[silo])
            return
        self._manifests[silo] = manifest
        self._tell("update_accepted", silo=silo, bytes=manifest.size_bytes, samples=manifest.samples, loss=manifest.loss)

    def _check(self, manifest: UpdateManifest) -> None:
        file = self._files[manifest.silo] = self._run.store.fetch(manifest.weights, self._max_bytes)
        check_weights_file(
            file, spec=self._spec, max_bytes=self._max_bytes, sha256=manifest.sha256, reference=self._reference, max_norm=self._max_norm)

    def _leave_out(self, silo: str, reason: str) -> None:
        self._absent[silo] = reason
        self._tell("silo_absent", silo=silo, reason=reason)

    def _leave_out_the_late(self, deadline_s: float) -> None:
        for silo in self._pending:
            self._leave_out(silo, f"no update within {deadline_s:g} s (protocol.round_deadline)")
        self._pending = []

    def _lose_quorum(self, min_silos: int) -> NoReturn:
        faults = [f"{silo}: {reason}" for silo, reason in [*self._absent.items(), *self._refused.items()]]
        reason = (
            f"round {self._round}: {len(self._manifests)} of {len(self._silos)} silos sent a good update, at least {min_silos}"
            f" (protocol.min_silos) expected; {'; '.join(faults)}")
        self._run.abort(reason)
        for silo in self._refused:
            self._run.store.delete(self._run.keys.update(silo, self._round))
        raise QuorumLost(reason)

    def _average(self, participants: Sequence[str], shares: Sequence[float], workdir: Path | None) -> tuple[str, str]:
        """Key and sha256 of the stored average."""
        with self._run.store.scratch_file(workdir) as path:
            sha256 = average_files([self._files[silo] for silo in participants], shares, path, self._spec.architecture)
            key = self._run.keys.global_model(self._round + 1, sha256)
            self._run.store.give(key, path)
        return key, sha256

    def _tell(self, event: str, **facts: object) -> None:
        self._on_event({"event": event, "round": self._round, **facts})


def _metrics(manifest: UpdateManifest) -> dict[str, float]:
    """What a commit says of a participant."""
    loss = {} if manifest.loss is None else {"loss": manifest.loss}
    return {**loss, **manifest.metrics, "samples": float(manifest.samples)}


def _in_order(reasons: Mapping[str, str], silos: Sequence[str]) -> dict[str, str]:
    return {silo: reasons[silo] for silo in silos if silo in reasons}
