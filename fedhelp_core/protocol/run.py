"""One run's objects in a store: silos submit updates and wait for commits, steps settle facts, the hub makes rounds real.

A thing exists when its manifest does: weights are written first, under the name of their content; the manifest last, once.
Whoever comes second finds the first's result and adopts it, so every step can be killed at any moment and run again. keys.py
has the objects' names, documents.py what stands in them, closing.py how the hub closes a round. Called by silos, components
and supervisors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedhelp_core.algorithm.server import PARTS, Part
from fedhelp_core.config.files import mapping_in
from fedhelp_core.disk import digest_of
from fedhelp_core.errors import NotFound, PermanentError, RunAborted, RunConflict
from fedhelp_core.protocol.documents import Commit, Notice, SiloEvaluation, SiloReport, UpdateManifest, dump, read, said, utc_now
from fedhelp_core.protocol.facts import Fact
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.store.base import Store
from fedhelp_core.store.waiting import wait_for
from fedhelp_core.weights.file import read_weights, serialize_weights
from fedhelp_core.weights.header import Weights, WeightsSpec

_MAX_CONFIG = 2**20  # bytes
F = TypeVar("F", bound=Fact)
OfSilo = TypeVar("OfSilo", SiloReport, SiloEvaluation)


class Run:
    """One run's objects in a store. Holds no state but what it remembers of write-once objects; threads may share it.

    Raises:
        PermanentError: `run_id` is not lower-case letters, digits and '-'.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.keys = RunKeys(run_id)
        self._newest: Commit | None = None

    # ---- the frozen config

    def freeze(self, federation_yaml: str) -> None:
        """Make this the run's config for good; the same again is fine, which is how a run is resumed.

        Raises:
            RunConflict: the run has another config; the message names the fields that differ.
        """
        if self.store.put_new(self.keys.federation, federation_yaml.encode()):
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
            return self.store.get(self.keys.federation, _MAX_CONFIG).decode()
        except NotFound as e:
            raise NotFound(f"no run {self.run_id!r} in {self.store.url}; start it, or check the run id and the store's url") from e
        except UnicodeDecodeError as e:
            raise PermanentError(f"{self.keys.federation}: is no text ({e.reason}); it is damaged or was tampered with") from e

    # ---- commits and global models

    def initialise(self, weights: Weights, architecture: str) -> Commit:
        """Commit 0 with `weights` as the start; if there is one already, that one."""
        if (known := self.commit(0)) is not None:
            return known
        body = serialize_weights(weights, architecture)
        sha256, _ = digest_of(body)
        key = self.keys.global_model(1, sha256)
        self.store.put_new(key, body)
        spec = WeightsSpec.from_weights(weights, architecture)
        return self.make_real(Commit(round=0, global_key=key, global_sha256=sha256, spec=spec, created=utc_now()))

    def commit(self, round: int) -> Commit | None:
        """The commit of `round`; None if that round is still open."""
        newest = self._newest
        if newest is not None and newest.round == round:
            return newest
        commit = read(self.store, Commit, self.keys.commit(round))
        if commit is None:
            return None
        self._require_possible(commit, round)
        self._remember(commit)
        return commit

    def is_committed(self, round: int) -> bool:
        """Whether `round` is closed: the cheapest look."""
        newest = self._newest
        return (newest is not None and round <= newest.round) or self.store.size(self.keys.commit(round)) is not None

    def make_real(self, commit: Commit) -> Commit:
        """Write `commit`, or give the one that somebody else wrote first."""
        if self.store.put_new(self.keys.commit(commit.round), dump(commit)):
            self._remember(commit)
            return commit
        adopted = self.commit(commit.round)
        if adopted is None:
            raise PermanentError(f"{self.keys.commit(commit.round)} was there and is gone; nothing may delete a commit")
        return adopted

    def latest_commit(self) -> Commit | None:
        """The commit of the last closed round; None before commit 0.

        A look ahead from the last one known, in doubling steps: rounds are committed without gaps.
        """
        low = self._newest.round if self._newest is not None else -1
        step = 1
        while self.is_committed(low + step):
            low, step = low + step, step * 2
        while step > 1:  # committed at low, not at low + step
            step //= 2
            if self.is_committed(low + step):
                low += step
        return self.commit(low) if low >= 0 else None

    def global_weights(self, commit: Commit, *, max_bytes: int) -> Weights:
        """The model after `commit`, its hash and spec verified.

        Raises:
            WeightsError: the object is damaged or larger than `max_bytes`.
        """
        path = self.global_file(commit, max_bytes=max_bytes)
        try:
            return read_weights(path, expected=commit.spec, max_bytes=max_bytes, sha256=commit.global_sha256)
        finally:
            self.store.release(path)

    def global_file(self, commit: Commit, *, max_bytes: int) -> Path:
        """A local file of the model after `commit`, not verified; `Store.release` drops a bucket's copy."""
        return self.store.fetch(commit.global_key, max_bytes)

    def server_state(self, commit: Commit, part: Part, *, max_bytes: int) -> Weights | None:
        """What the hub remembers after `commit`, its hash and spec verified; None if it remembers no such part.

        Raises:
            WeightsError: the object is damaged or larger than `max_bytes`.
        """
        if part not in commit.server_state:
            return None
        sha256 = commit.server_state[part]
        path = self.store.fetch(self.keys.server_state(commit.round + 1, part, sha256), max_bytes)
        try:
            return read_weights(path, expected=commit.spec, max_bytes=max_bytes, sha256=sha256)
        finally:
            self.store.release(path)

    def require_start(self, commit: Commit, drawn_sha256: str) -> None:
        """Hold commit 0 against the model that silos draw from the seed: whoever came first wrote it, and may have written another.

        Raises:
            PermanentError: it is another.
        """
        if commit.global_sha256 != drawn_sha256:
            raise PermanentError(
                f"run {self.run_id!r}: the start model in the store is not the one that all silos draw from the seed ({drawn_sha256[:12]}); somebody"
                " wrote another: look at who may write there, and start another run")

    def wait_for_commit(self, round: int, *, timeout: float | None = None) -> Commit:
        """The latest commit, once that is of `round` or later. For silos.

        Raises:
            RunAborted: the run was ended for everyone.
            NotFound: `timeout` seconds have passed.
        """

        def look() -> Commit | None:
            self.raise_if_aborted()
            return self.latest_commit() if self.is_committed(round) else None

        commit = wait_for(self.store, look, timeout=timeout)
        if commit is None:
            raise NotFound(f"run {self.run_id!r}: round {round} was not committed within {timeout:g} s; is aggregation running?")
        return commit

    # ---- updates and absences

    def submit_update(
        self, silo: str, round: int, weights: Weights | Path, *, trained_from: str, architecture: str, samples: int, loss: float | None,
        metrics: Mapping[str, float], code_version: str = "", image_digest: str = "",
    ) -> UpdateManifest:
        """Send a silo's update: weights (arrays, or a file of `write_weights`), then its manifest.

        `trained_from`: sha256 (hex) of the global model that the silo started from. If this silo has answered the round already,
        nothing is sent and the first answer's manifest is returned. Metrics
        that are not finite are left out.
        """
        if (known := self.update(silo, round)) is not None:
            return known
        body = weights if isinstance(weights, Path) else serialize_weights(weights, architecture)
        sha256, size = digest_of(body)
        key = self.keys.weights(silo, round, sha256)
        manifest = UpdateManifest(
            silo=silo, round=round, trained_from=trained_from, weights=key, sha256=sha256, size_bytes=size, samples=samples,
            loss=None if loss is None else float(loss),
            metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)}, architecture=architecture,
            code_version=code_version, image_digest=image_digest, created=utc_now())
        self.store.put_new(key, body)
        if self.store.put_new(self.keys.update(silo, round), dump(manifest)):
            return manifest
        return self.update(silo, round) or manifest

    def update(self, silo: str, round: int) -> UpdateManifest | None:
        """The manifest of the silo's answer to `round`; None if there is none yet.

        Raises:
            PermanentError: the object is no manifest, or of another silo or round.
        """
        key = self.keys.update(silo, round)
        manifest = read(self.store, UpdateManifest, key)
        if manifest is None:
            return None
        if (manifest.silo, manifest.round) != (silo, round):
            raise PermanentError(f"{key}: the manifest is of silo {manifest.silo!r}, round {manifest.round}")
        if manifest.weights != self.keys.weights(silo, round, manifest.sha256):
            raise PermanentError(f"{key}: weights should be {self.keys.weights(silo, round, manifest.sha256)!r}, got {manifest.weights[:200]!r}")
        return manifest

    def answered(self, silo: str, round: int) -> bool:
        """Whether the silo has answered `round`, well or badly: the cheapest look, and one that a bad manifest cannot end."""
        return self.store.size(self.keys.update(silo, round)) is not None

    def take_back_update(self, silo: str, round: int) -> None:
        """Remove a manifest, so that the silo can answer `round` anew."""
        self.store.delete(self.keys.update(silo, round))

    def drop_weights(self, round: int) -> None:
        """Remove the weights of a committed round's updates, those of killed submissions included."""
        for key in self.store.list(self.keys.updates(round)):
            if key.endswith(".safetensors"):
                self.store.delete(key)

    def drop_server_state(self, round: int) -> None:
        """Remove what the hub remembered as `round` started; the model stays."""
        prefixes = tuple(self.keys.server_state(round, part, "").removesuffix(".safetensors") for part in PARTS)
        for key in self.store.list(self.keys.global_model(round, "").removesuffix(".safetensors")):
            if key.startswith(prefixes):
                self.store.delete(key)

    def mark_absent(self, silo: str, round: int, reason: str) -> None:
        """Say that the silo will not answer `round`, so that nobody waits for it. The first reason stays."""
        self.store.put_new(self.keys.absence(silo, round), _notice(reason))

    def absences(self, round: int) -> dict[str, str]:
        """Silo -> reason of all markers of `round`."""
        marked = map(self.keys.absent_silo, self.store.list(self.keys.absences(round)))
        return {silo: self.absence(silo, round) or "" for _, silo in filter(None, marked)}

    def absence(self, silo: str, round: int) -> str | None:
        """Why the silo will not answer `round`; None if nobody said that it will not."""
        return self._reason(self.keys.absence(silo, round))

    # ---- ending it for everyone

    def abort(self, reason: str) -> None:
        """End the run for everyone; the first reason stays."""
        self.store.put_new(self.keys.abort, _notice(reason))

    def abort_reason(self) -> str | None:
        """Why the run was ended; None while it goes on."""
        return self._reason(self.keys.abort)

    def raise_if_aborted(self) -> None:
        """One look.

        Raises:
            RunAborted: with the reason.
        """
        if self.store.size(self.keys.abort) is not None:
            raise RunAborted(f"run {self.run_id!r} was ended: {self.abort_reason()}")

    def clear_abort(self) -> None:
        """Let the run go on: drops the absence markers of the rounds not yet committed, then the abort."""
        latest = self.latest_commit()
        first_open = 0 if latest is None else latest.round + 1
        for key in self.store.list(self.keys.rounds()):
            marked = self.keys.absent_silo(key)
            if marked is not None and marked[0] >= first_open:
                self.store.delete(key)
        self.store.delete(self.keys.abort)

    # ---- what silos report beside updates

    def silo_report(self, silo: str) -> SiloReport | None:
        """What check found in the silo; None before.

        Raises:
            PermanentError: the object is no report, or of another silo.
        """
        return self._of(silo, SiloReport, self.keys.silo_report(silo))

    def has_silo_report(self, silo: str) -> bool:
        """Whether the silo has reported, well or badly."""
        return self.store.size(self.keys.silo_report(silo)) is not None

    def write_silo_report(self, report: SiloReport) -> None:
        """Write-once: a report that is there already stays."""
        self.store.put_new(self.keys.silo_report(report.silo), dump(report))

    def evaluation(self, silo: str) -> SiloEvaluation | None:
        """The silo's scores on its test data; None before.

        Raises:
            PermanentError: the object is no evaluation, or of another silo.
        """
        return self._of(silo, SiloEvaluation, self.keys.evaluation(silo))

    def has_evaluation(self, silo: str) -> bool:
        """Whether the silo has evaluated, well or badly."""
        return self.store.size(self.keys.evaluation(silo)) is not None

    def write_evaluation(self, evaluation: SiloEvaluation) -> None:
        """Write-once: an evaluation that is there already stays."""
        self.store.put_new(self.keys.evaluation(evaluation.silo), dump(evaluation))

    # ---- what steps settle for later ones

    def settle(self, fact: F) -> F:
        """Make `fact` the run's, or give the one that is there already."""
        if self.store.put_new(self.keys.fact(fact.fact_name), dump(fact)):
            return fact
        return self.fact(type(fact))

    def note(self, fact: Fact) -> None:
        """Write what people read and nothing decides by, in place of what an earlier try wrote."""
        self.store.put(self.keys.fact(fact.fact_name), dump(fact))

    def fact(self, kind: type[F]) -> F:
        """The run's fact of `kind`.

        Raises:
            NotFound: the step that writes it has not finished.
            PermanentError: the object is no such fact.
        """
        fact = read(self.store, kind, self.keys.fact(kind.fact_name))
        if fact is None:
            raise NotFound(f"run {self.run_id!r} has no {kind.fact_name} yet; run the step before this one first (check, then soft_label_prefetch)")
        return fact

    def has_fact(self, kind: type[Fact]) -> bool:
        """Whether the step that settles it has finished."""
        return self.store.size(self.keys.fact(kind.fact_name)) is not None

    # ---- reading

    def _of(self, silo: str, kind: type[OfSilo], key: str) -> OfSilo | None:
        document = read(self.store, kind, key)
        if document is not None and document.silo != silo:
            raise PermanentError(f"{key}: silo: {silo!r} expected, got {document.silo!r}")
        return document

    def _reason(self, key: str) -> str | None:
        notice = read(self.store, Notice, key)
        return None if notice is None else notice.reason

    def _require_possible(self, commit: Commit, round: int) -> None:
        """What no hub writes under this name.

        Raises:
            PermanentError: the commit is of another round, names an object of another, or commit 0 has silos in it.
        """
        key = self.keys.commit(round)
        if commit.round != round:
            raise PermanentError(f"{key} says that it is of round {commit.round}; the store was tampered with")
        expected = self.keys.global_model(round + 1, commit.global_sha256)
        if commit.global_key != expected:
            raise PermanentError(f"{key}: global_key: {expected!r} expected, got {commit.global_key[:200]!r}; the store was tampered with")
        if round == 0 and (commit.participants or commit.shares or commit.absent or commit.refused or commit.metrics or commit.previous_sha256
                           or commit.server_state):
            raise PermanentError(f"{key}: the start has no participants, absent or refused silos, and no state; the store was tampered with")

    def _remember(self, commit: Commit) -> None:
        if self._newest is None or commit.round > self._newest.round:
            self._newest = commit


def _notice(reason: str) -> bytes:
    return dump(Notice(reason=said(reason), created=utc_now()))


def _differences(frozen: str, wanted: str) -> str:
    """The first three fields in which two YAML configs differ, as 'field: a expected, got b'."""
    left, right = (dict(_leaves(mapping_in(text, "config"))) for text in (frozen, wanted))
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
