"""The round protocol over a Store: what hub and silos write to each other, and how the hub closes a round.

`Run` is one run's objects (docs/architecture.md lists their names); silos submit updates and wait for commits, the hub
calls `close_round` round after round. A thing exists when its manifest does: weights are written first, under the name of
their content; the manifest last, once. Whoever comes second finds the first's result and adopts it, so every step can be
killed at any moment and run again. Called by silo.py, the aggregation and federation components, and the supervisors.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from fedhelp_core.algorithm.averaging import average_files, shares_of
from fedhelp_core.errors import AccessDenied, ConfigError, NotFound, PermanentError, QuorumLost, RunAborted, RunConflict
from fedhelp_core.protocol.documents import Commit, OfSilo, SiloEvaluation, SiloReport, UpdateManifest, dump, parse, parse_mapping
from fedhelp_core.store.base import Store
from fedhelp_core.store.waiting import Poller, wait_for
from fedhelp_core.weights.check import check_weights_file
from fedhelp_core.weights.file import read_weights, serialize_weights
from fedhelp_core.weights.header import Weights, WeightsSpec

OnEvent = Callable[[dict[str, object]], None]
"""Called with {"event": "update_accepted" | "update_refused" | "silo_absent" | "round_committed", "round": r, …}."""

_MAX_JSON = 2**20  # bytes of a manifest, report or marker
_MAX_COMMIT = 16 * 2**20  # bytes; 1000 silos with all the metrics that a manifest may hold stay below
_MAX_REASON = 500  # characters


class Run:
    """One run's objects in a store. Holds no state but what it remembers of write-once objects; threads may share it.

    Raises:
        PermanentError: `run_id` is not lower-case letters, digits and '-'.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = _checked_name(run_id, "run id")
        self._root = f"runs/{run_id}"
        self._newest: Commit | None = None

    # ---- the frozen config

    def freeze(self, federation_yaml: str) -> None:
        """Make this the run's config for good; the same again is fine, which is how a run is resumed.

        Raises:
            RunConflict: the run has another config; the message names the fields that differ.
        """
        if self.store.put_new(self._key("federation.yaml"), federation_yaml.encode()):
            return
        frozen = self.federation_yaml()
        if frozen != federation_yaml:
            raise RunConflict(
                f"run {self.run_id!r} was started with another config: {_differences(frozen, federation_yaml)};"
                " resume it with the config it was started with, or choose another run id")

    def federation_yaml(self) -> str:
        """The frozen config.

        Raises:
            NotFound: no run of this id was started in this store.
        """
        try:
            return self.store.get(self._key("federation.yaml"), _MAX_JSON).decode()
        except NotFound as e:
            raise NotFound(f"no run {self.run_id!r} in {self.store.url}; start it, or check the run id and the store's url") from e

    # ---- commits and global models

    def initialise(self, weights: Weights, architecture: str) -> Commit:
        """Commit 0 with `weights` as the start; if there is one already, that one."""
        if (known := self.commit(0)) is not None:
            return known
        body = serialize_weights(weights, architecture)
        sha256 = hashlib.sha256(body).hexdigest()
        key = self._global_key(1, sha256)
        self.store.put_new(key, body)
        spec = WeightsSpec.from_weights(weights, architecture).to_json()
        return self._write_commit(Commit(round=0, global_key=key, global_sha256=sha256, spec=spec, created=_now()))

    def commit(self, round: int) -> Commit | None:
        """The commit of `round`; None if that round is still open."""
        newest = self._newest
        if newest is not None and newest.round == round:
            return newest
        body = self._get(self._commit_key(round), _MAX_COMMIT)
        if body is None:
            return None
        commit = parse(Commit, body, self._commit_key(round))
        if commit.round != round:
            raise PermanentError(f"{self._commit_key(round)} says that it is of round {commit.round}; the store was tampered with")
        self._remember(commit)
        return commit

    def latest_commit(self) -> Commit | None:
        """The commit of the last closed round; None before commit 0.

        A look ahead from the last one known, in doubling steps: rounds are committed without gaps.
        """
        low = self._newest.round if self._newest is not None else -1
        step = 1
        while self._committed(low + step):
            low, step = low + step, step * 2
        while step > 1:  # committed at low, not at low + step
            step //= 2
            if self._committed(low + step):
                low += step
        return self.commit(low) if low >= 0 else None

    def global_weights(self, commit: Commit, *, max_bytes: int) -> Weights:
        """The model after `commit`, its hash and spec verified.

        Raises:
            WeightsError: the object is damaged or larger than `max_bytes`.
        """
        path = self.store.fetch(commit.global_key)
        try:
            return read_weights(path, expected=commit.weights_spec, max_bytes=max_bytes, sha256=commit.global_sha256)
        finally:
            self.store.release(path)

    def global_file(self, commit: Commit) -> Path:
        """A local file of the model after `commit`, not verified; `store.release` drops a bucket's copy."""
        return self.store.fetch(commit.global_key)

    def wait_for_commit(self, round: int, *, timeout: float | None = None) -> Commit:
        """The latest commit, once that is of `round` or later. For silos.

        Raises:
            RunAborted: the run was ended for everyone.
            NotFound: `timeout` seconds have passed.
        """

        def look() -> Commit | None:
            self.raise_if_aborted()
            return self.latest_commit() if self._committed(round) else None

        commit = wait_for(self.store, look, timeout=timeout)
        if commit is None:
            raise NotFound(f"run {self.run_id!r}: round {round} was not committed within {timeout:g} s; is aggregation running?")
        return commit

    # ---- updates and absences

    def submit_update(
        self, silo: str, round: int, weights: Weights | Path, *, architecture: str, samples: int, loss: float | None,
        metrics: Mapping[str, float], code_version: str = "", image_digest: str = "",
    ) -> UpdateManifest:
        """Send a silo's update: weights (arrays, or a file of `write_weights`), then its manifest.

        If this silo has answered the round already, nothing is sent and the first answer's manifest is returned. Metrics
        that are not finite are left out.
        """
        if (known := self.update(silo, round)) is not None:
            return known
        body = weights if isinstance(weights, Path) else serialize_weights(weights, architecture)
        sha256, size = _digest(body)
        key = self._weights_key(silo, round, sha256)
        manifest = UpdateManifest(
            silo=silo, round=round, weights=key, sha256=sha256, size_bytes=size, samples=samples, loss=None if loss is None else float(loss),
            metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)}, architecture=architecture,
            code_version=code_version, image_digest=image_digest, created=_now())
        self.store.put_new(key, body)
        if self.store.put_new(self._update_key(silo, round), dump(manifest)):
            return manifest
        return self.update(silo, round) or manifest

    def update(self, silo: str, round: int) -> UpdateManifest | None:
        """The manifest of the silo's answer to `round`; None if there is none yet.

        Raises:
            PermanentError: the object is no manifest, or of another silo or round.
        """
        key = self._update_key(silo, round)
        body = self._get(key, _MAX_JSON)
        if body is None:
            return None
        manifest = parse(UpdateManifest, body, key)
        if (manifest.silo, manifest.round) != (silo, round):
            raise PermanentError(f"{key}: the manifest is of silo {manifest.silo!r}, round {manifest.round}")
        if manifest.weights != self._weights_key(silo, round, manifest.sha256):
            raise PermanentError(f"{key}: weights should be {self._weights_key(silo, round, manifest.sha256)!r}, got {manifest.weights[:200]!r}")
        return manifest

    def answered(self, silo: str, round: int) -> bool:
        """Whether the silo has answered `round`, well or badly: the cheapest look, and one that a bad manifest cannot end."""
        return self.store.size(self._update_key(silo, round)) is not None

    def mark_absent(self, silo: str, round: int, reason: str) -> None:
        """Say that the silo will not answer `round`, so that nobody waits for it. The first reason stays."""
        self.store.put_new(self._absent_key(silo, round), _json({"reason": reason[:_MAX_REASON], "created": _now()}))

    def absences(self, round: int) -> dict[str, str]:
        """Silo -> reason of all markers of `round`."""
        prefix = self._key(f"rounds/{round}/absent/")
        return {key[len(prefix):].removesuffix(".json"): self._reason(key) or "" for key in self.store.list(prefix)}

    # ---- ending it for everyone

    def abort(self, reason: str) -> None:
        """End the run for everyone; the first reason stays."""
        self.store.put_new(self._key("abort"), _json({"reason": reason[:_MAX_REASON], "created": _now()}))

    def abort_reason(self) -> str | None:
        """Why the run was ended; None while it goes on."""
        return self._reason(self._key("abort"))

    def raise_if_aborted(self) -> None:
        """One look.

        Raises:
            RunAborted: with the reason.
        """
        if self.store.size(self._key("abort")) is not None:
            raise RunAborted(f"run {self.run_id!r} was ended: {self.abort_reason()}")

    def clear_abort(self) -> None:
        """Let the run go on: drops the absence markers of the rounds not yet committed, then the abort."""
        latest = self.latest_commit()
        first_open = 0 if latest is None else latest.round + 1
        for key in self.store.list(self._key("rounds/")):
            match = re.fullmatch(r".*/rounds/(\d+)/absent/[^/]+", key)
            if match and int(match.group(1)) >= first_open:
                self.store.delete(key)
        self.store.delete(self._key("abort"))

    # ---- what silos report beside updates

    def silo_report(self, silo: str) -> SiloReport | None:
        """What check found in the silo; None before.

        Raises:
            PermanentError: the object is no report, or of another silo.
        """
        return self._of(silo, SiloReport, self._report_key(silo))

    def has_silo_report(self, silo: str) -> bool:
        """Whether the silo has reported, well or badly."""
        return self.store.size(self._report_key(silo)) is not None

    def write_silo_report(self, report: SiloReport) -> None:
        """Write-once: a report that is there already stays."""
        self.store.put_new(self._report_key(report.silo), dump(report))

    def evaluation(self, silo: str) -> SiloEvaluation | None:
        """The silo's scores on its test data; None before.

        Raises:
            PermanentError: the object is no evaluation, or of another silo.
        """
        return self._of(silo, SiloEvaluation, self._evaluation_key(silo))

    def has_evaluation(self, silo: str) -> bool:
        """Whether the silo has evaluated, well or badly."""
        return self.store.size(self._evaluation_key(silo)) is not None

    def write_evaluation(self, evaluation: SiloEvaluation) -> None:
        """Write-once: an evaluation that is there already stays."""
        self.store.put_new(self._evaluation_key(evaluation.silo), dump(evaluation))

    # ---- names and reading

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _commit_key(self, round: int) -> str:
        return self._key(f"rounds/{round}/commit.json")

    def _global_key(self, round: int, sha256: str) -> str:
        return self._key(f"rounds/{round}/global-{sha256[:16]}.safetensors")

    def _update_key(self, silo: str, round: int) -> str:
        return self._key(f"rounds/{round}/updates/{_checked_name(silo, 'silo')}.json")

    def _weights_key(self, silo: str, round: int, sha256: str) -> str:
        return self._key(f"rounds/{round}/updates/{_checked_name(silo, 'silo')}-{sha256[:16]}.safetensors")

    def _absent_key(self, silo: str, round: int) -> str:
        return self._key(f"rounds/{round}/absent/{_checked_name(silo, 'silo')}.json")

    def _get(self, key: str, max_bytes: int) -> bytes | None:
        try:
            return self.store.get(key, max_bytes)
        except NotFound:
            return None

    def _report_key(self, silo: str) -> str:
        return self._key(f"silos/{_checked_name(silo, 'silo')}.json")

    def _evaluation_key(self, silo: str) -> str:
        return self._key(f"evaluation/{_checked_name(silo, 'silo')}.json")

    def _of(self, silo: str, kind: type[OfSilo], key: str) -> OfSilo | None:
        body = self._get(key, _MAX_JSON)
        if body is None:
            return None
        document = parse(kind, body, key)
        if document.silo != silo:
            raise PermanentError(f"{key}: silo: {silo!r} expected, got {document.silo!r}")
        return document

    def _get_mapping(self, key: str) -> dict[str, Any] | None:
        body = self._get(key, _MAX_JSON)
        return None if body is None else parse_mapping(body, key)

    def _reason(self, key: str) -> str | None:
        document = self._get_mapping(key)
        return None if document is None else str(document.get("reason", "no reason given"))

    def _committed(self, round: int) -> bool:
        newest = self._newest
        return (newest is not None and round <= newest.round) or self.store.size(self._commit_key(round)) is not None

    def _write_commit(self, commit: Commit) -> Commit:
        """Make `commit` real, or adopt the one that somebody else made real first."""
        if self.store.put_new(self._commit_key(commit.round), dump(commit)):
            self._remember(commit)
            return commit
        adopted = self.commit(commit.round)
        if adopted is None:
            raise PermanentError(f"{self._commit_key(commit.round)} was there and is gone; nothing may delete a commit")
        return adopted

    def _remember(self, commit: Commit) -> None:
        if self._newest is None or commit.round > self._newest.round:
            self._newest = commit


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
        _drop_weights(run, round - 1)
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
        self._spec = previous.weights_spec
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
        commit = self._run._write_commit(Commit(
            round=self._round, global_key=key, global_sha256=sha256, spec=self._previous.spec, participants=tuple(participants),
            shares=dict(zip(participants, shares, strict=True)), absent=_in_order(self._absent, self._silos),
            refused=_in_order(self._refused, self._silos), metrics={silo: _metrics(self._manifests[silo]) for silo in participants},
            previous_sha256=self._previous.global_sha256, created=_now()))
        self._tell("round_committed", participants=list(commit.participants), global_sha256=commit.global_sha256)
        return commit

    def release(self) -> None:
        """Drop local copies of what came from a bucket."""
        for path in [*self._files.values(), *([self._reference] if self._reference else [])]:
            self._run.store.release(path)

    def _look(self, poller: Poller) -> Commit | None:
        """Take in what has arrived. One stat per pending silo and kind of object in a folder, one listing in a bucket."""
        run, round = self._run, self._round
        if run._committed(round):
            return run.commit(round)
        run.raise_if_aborted()
        keys = {run._update_key(silo, round): silo for silo in self._pending}
        markers = {run._absent_key(silo, round): silo for silo in self._pending}
        there = run.store.present([*keys, *markers], prefix=run._key(f"rounds/{round}/"))
        for key, silo in keys.items():
            if key in there:
                self._pending.remove(silo)
                self._take_in(silo)
                poller.reset()
        for marker, silo in markers.items():
            if marker in there and silo in self._pending:
                self._pending.remove(silo)
                self._leave_out(silo, run._reason(marker) or "no reason given")
        return None

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
            self._refused[silo] = str(e)[:_MAX_REASON]
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
            self._run.store.delete(self._run._update_key(silo, self._round))
        raise QuorumLost(reason)

    def _average(self, participants: Sequence[str], shares: Sequence[float], workdir: Path | None) -> tuple[str, str]:
        """Key and sha256 of the stored average."""
        with self._run.store.scratch_file(workdir) as path:
            sha256 = average_files([self._files[silo] for silo in participants], shares, path, self._spec.architecture)
            key = self._run._global_key(self._round + 1, sha256)
            self._run.store.give(key, path)
        return key, sha256

    def _tell(self, event: str, **facts: object) -> None:
        self._on_event({"event": event, "round": self._round, **facts})


def _drop_weights(run: Run, round: int) -> None:
    """Remove the weights of a committed round's updates, those of killed submissions included."""
    for key in run.store.list(run._key(f"rounds/{round}/updates/")):
        if key.endswith(".safetensors"):
            run.store.delete(key)


def _metrics(manifest: UpdateManifest) -> dict[str, float]:
    """What a commit says of a participant."""
    loss = {} if manifest.loss is None else {"loss": manifest.loss}
    return {**loss, **manifest.metrics, "samples": float(manifest.samples)}


def _in_order(reasons: Mapping[str, str], silos: Sequence[str]) -> dict[str, str]:
    return {silo: reasons[silo] for silo in silos if silo in reasons}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _digest(body: bytes | Path) -> tuple[str, int]:
    """sha256 (hex) and size in bytes."""
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest(), len(body)
    with body.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest(), handle.tell()


def _checked_name(name: str, what: str) -> str:
    """`name` as it may stand in an object's key."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise PermanentError(f"{what} {name[:80]!r}: 1 to 63 lower-case letters, digits and '-' expected, no '-' at the ends")
    return name


def _differences(frozen: str, wanted: str) -> str:
    """The first three fields in which two YAML configs differ, as 'field: a expected, got b'."""
    left, right = (dict(_leaves(yaml.safe_load(text))) for text in (frozen, wanted))
    fields = [name for name in [*left, *(n for n in right if n not in left)] if left.get(name) != right.get(name)]
    told = [f"{name}: {left.get(name, 'nothing')!r} expected, got {right.get(name, 'nothing')!r}" for name in fields[:3]]
    more = f" and {len(fields) - 3} more" if len(fields) > 3 else ""
    return ", ".join(told) + more if told else "the text differs, though no field does"


def _leaves(node: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, f"{name}[{index}]")
    else:
        yield name, node
