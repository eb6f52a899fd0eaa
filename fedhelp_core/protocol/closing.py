"""How the hub closes a round: wait for the updates, check each, average them, commit. Called by aggregation, round after round.

Killed at any moment and called again, or called by two hubs at once, it ends with the same commit.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from fedhelp_core.algorithm.averaging import MEAN, Rule
from fedhelp_core.algorithm.server import BEFORE, MODEL, PARTS, Answers, Part, Source, computations, last
from fedhelp_core.errors import AccessDenied, ConfigError, NotFound, PermanentError, QuorumLost, WeightsError
from fedhelp_core.protocol.averaging import compute_file
from fedhelp_core.protocol.documents import Commit, Moved, UpdateManifest, said, utc_now
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms, check_manifest, check_update
from fedhelp_core.store.waiting import Poller
from fedhelp_core.weights.check import Checked, check_weights_file
from fedhelp_core.weights.comparison import Compared, compare
from fedhelp_core.weights.file import WeightsFile
from fedhelp_core.weights.outliers import far_movers, loud_steppers, odd_statistics, opposed

OnEvent = Callable[[dict[str, object]], None]
"""Called with {"event": "update_accepted" | "update_refused" | "silo_absent" | "round_committed", "round": r, …}."""

_WRITTEN_TO = "is written to again and again; it must not be after it has its name"


def close_round(
    run: Run, round: int, samples: Mapping[str, int], *, min_silos: int, deadline_s: float, terms: Terms,
    weighting: Literal["uniform", "samples"] = "uniform", rule: Rule = MEAN, on_event: OnEvent | None = None, workdir: Path | None = None,
    keep_updates: bool = False, steps: Mapping[str, int] | None = None, labelled: Mapping[str, Sequence[bool] | None] | None = None,
) -> Commit:
    """Wait for the updates of the silos in `samples`, check each, average them in that order, and commit the round. For the hub.

    `samples`: silo -> training images as its check counted them, which no update can change any more. Ends as soon as every
    silo has answered or is marked absent, or `deadline_s` seconds after this call began to wait; who is late is left out of
    this round only. A committed round returns at once, and two hubs closing the same round end with the same commit.
    `workdir`: where the average (one model) is written before it goes to the store; null: the store's own folder where it has
    one, else the system's. `keep_updates`: False removes the weights that silos sent to the round before, which its commit has
    made useless, while this round's silos train: they say more about one hospital than an average does, and S silos times R
    rounds of them fill a disk. Their manifests and hashes stay. `steps`: silo -> optimizer steps of a round, by its images as check counted
    them; null: batches in one pass. `labelled`: silo -> which outputs it labels, as the frozen config has it; null: all silos label all.

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
    if previous.server_state:
        run.drop_server_state(round - 2)  # of the round before a late silo may still be reading
    steps = steps or {silo: math.ceil(count / terms.batch_size) for silo, count in samples.items()}
    closing = _Closing(run, round, samples, steps, labelled or {}, previous, max(1, min_silos), terms, on_event or (lambda _event: None))
    try:
        return closing.wait(deadline_s) or closing.commit(weighting, rule, workdir)
    except NotFound:  # another hub was faster, and has removed what this one was about to average
        if (adopted := run.commit(round)) is None:
            raise
        return adopted
    finally:
        closing.release()


class _Closing:
    """One round being closed: who has answered, who will not."""

    def __init__(
        self, run: Run, round: int, samples: Mapping[str, int], steps: Mapping[str, int], labelled: Mapping[str, Sequence[bool] | None],
        previous: Commit, min_silos: int, terms: Terms, on_event: OnEvent,
    ) -> None:
        self._run = run
        self._round = round
        self._samples = samples
        self._steps = steps
        self._labelled = labelled
        self._silos = tuple(samples)
        self._previous = previous
        self._min_silos = min_silos
        self._terms = terms
        self._reference = run.global_file(previous, max_bytes=terms.max_bytes)
        self._on_event = on_event
        self._pending = list(samples)
        self._manifests: dict[str, UpdateManifest] = {}
        self._files: dict[str, Path] = {}
        self._checked: dict[str, Checked] = {}
        self._compared: dict[str, Compared] = {}
        self._recalled: dict[Part, Path] = {}
        self._absent: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def wait(self, deadline_s: float) -> Commit | None:
        """Look until nobody is pending, the deadline is over, or too few can answer; a commit if another hub was faster."""
        until = time.monotonic() + deadline_s
        poller = Poller(self._run.store)
        while True:
            over = time.monotonic() >= until  # looked at first, so that whoever answered by then is still taken in
            if (adopted := self._look(poller)) is not None:
                return adopted
            self._require_quorum(self._pending)
            if not self._pending:
                return None
            if over:
                self._leave_out_the_late(deadline_s)
            else:
                poller.pause(until=until)

    def commit(self, weighting: Literal["uniform", "samples"], rule: Rule, workdir: Path | None) -> Commit:
        """Refuse who is unlike all others, average the other good updates and make the round real."""
        self._refuse_outliers(rule)
        for part, sha256 in self._previous.server_state.items():
            self._recalled[part] = self._run.store.fetch(self._run.keys.server_state(self._round, part, sha256), self._terms.max_bytes)
        shares, key, sha256, state = self._compute(weighting, rule, workdir)
        commit = self._run.make_real(Commit(
            round=self._round, global_key=key, global_sha256=sha256, spec=self._previous.spec, participants=tuple(shares), shares=shares,
            absent=_in_order(self._absent, self._silos), refused=_in_order(self._refused, self._silos),
            metrics={silo: _metrics(self._manifests[silo], self._samples[silo]) for silo in shares},
            norms={silo: self._moved(silo) for silo in shares},
            server_state=state, previous_sha256=self._previous.global_sha256, created=utc_now()))
        self._tell("round_committed", participants=list(commit.participants), global_sha256=commit.global_sha256)
        return commit

    def release(self) -> None:
        """Drop local copies of what came from a bucket."""
        for path in [*self._files.values(), *self._recalled.values(), self._reference]:
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
            return said(e)

    def _take_in(self, silo: str, manifest: UpdateManifest | None = None) -> None:
        """Check a silo's update; a bad one is refused with the reason, and its silo counts as absent."""
        try:
            manifest = manifest or self._run.update(silo, self._round)
            if manifest is None:
                raise NotFound("the manifest was there and is gone")
            check_manifest(manifest, self._previous, self._terms)
            file = self._files[silo] = self._run.store.fetch(manifest.weights, self._terms.max_bytes)
            self._checked[silo] = check_update(file, manifest, self._previous, self._reference, self._terms)
        except (AccessDenied, ConfigError):
            raise  # the hub's own trouble with the store, not the silo's fault
        except PermanentError as e:
            self._refuse(silo, e)
            return
        self._manifests[silo] = manifest
        self._tell("update_accepted", silo=silo, bytes=manifest.size_bytes, samples=self._samples[silo], loss=manifest.loss)

    def _refuse_outliers(self, rule: Rule) -> None:
        """Who moved much farther than the others of this round, then who is unlike those who are left."""
        terms, spec = self._terms, self._previous.spec
        batches = {silo: math.ceil(samples / terms.batch_size) for silo, samples in self._samples.items()}
        checked = {silo: self._checked[silo] for silo in self._manifests}
        if terms.max_norm_ratio is not None:
            self._refuse_all(far_movers(checked, spec, batches, bound=terms.max_norm_ratio))
            if rule.by_steps:
                self._refuse_all(loud_steppers({silo: checked[silo] for silo in self._manifests}, self._steps, bound=terms.max_norm_ratio))
        if terms.max_statistics_ratio is None and terms.min_direction is None:
            return
        self._compare()
        odd: dict[str, str] = {}
        if terms.max_statistics_ratio is not None:
            odd |= odd_statistics(self._compared, spec, batches, bound=terms.max_statistics_ratio)
        if terms.min_direction is not None:
            odd |= opposed(self._compared, bound=terms.min_direction)
        self._refuse_all(odd)

    def _compare(self) -> None:
        """Look at the good updates beside each other; who writes to a file meanwhile is refused, since it may have been another's bytes."""
        while self._manifests and not self._compared:
            files = {silo: self._files[silo] for silo in self._manifests}
            try:
                compared = compare(files, self._reference, self._previous.spec, [self._manifests[silo].sha256 for silo in files])
            except (NotFound, WeightsError):
                if self._run.is_committed(self._round) or all(map(self._rests, files)):
                    raise
                compared = {}
            if not (changed := [silo for silo in files if not self._rests(silo)]):
                self._compared = compared
            self._refuse_all({silo: f"{files[silo]}: {_WRITTEN_TO}" for silo in changed})

    def _refuse_all(self, reasons: Mapping[str, str]) -> None:
        for silo, reason in reasons.items():
            del self._manifests[silo]
            self._refuse(silo, reason)

    def _moved(self, silo: str) -> Moved:
        """What a commit says of how a participant moved."""
        checked, compared = self._checked[silo], self._compared.get(silo)
        return Moved(
            trainable=checked.trainable, statistics=checked.statistics, direction=None if compared is None else round(compared.direction, 3))

    def _refuse(self, silo: str, reason: object) -> None:
        self._refused[silo] = said(reason)
        self._tell("update_refused", silo=silo, reason=self._refused[silo])

    def _leave_out(self, silo: str, reason: str) -> None:
        self._absent[silo] = reason
        self._tell("silo_absent", silo=silo, reason=reason)

    def _leave_out_the_late(self, deadline_s: float) -> None:
        for silo in self._pending:
            self._leave_out(silo, f"no update within {deadline_s:g} s (protocol.round_deadline)")
        self._pending = []

    def _require_quorum(self, pending: Sequence[str] = ()) -> None:
        """Whether enough have answered well, or still can."""
        if len(self._manifests) + len(pending) >= self._min_silos:
            return
        faults = [f"{silo}: {reason}" for silo, reason in [*self._absent.items(), *self._refused.items()]]
        reason = (
            f"round {self._round}: {len(self._manifests)} of {len(self._silos)} silos sent a good update, at least {self._min_silos}"
            f" (protocol.min_silos) expected; {'; '.join(faults)}")
        self._run.abort(reason)
        for silo in self._refused:
            self._run.take_back_update(silo, self._round)
        raise QuorumLost(reason)

    def _compute(
        self, weighting: Literal["uniform", "samples"], rule: Rule, workdir: Path | None,
    ) -> tuple[dict[str, float], str, str, dict[Part, str]]:
        """Shares by participant, key and sha256 of the next model, sha256 of what is remembered; all stored, of the very bytes that were checked.

        Whoever may write to a folder can write to a file that was checked. What changed meanwhile is checked again, and computed
        again; a file that never rests is refused.
        """
        with ExitStack() as stack:
            made: dict[str, Path] = defaultdict(lambda: stack.enter_context(self._run.store.scratch_file(workdir)))
            for last_turn in (False, False, True, *[True] * len(self._silos)):
                self._require_quorum()
                participants = [silo for silo in self._silos if silo in self._manifests]
                answers = Answers.of(participants, self._samples, self._steps, weighting, self._labelled)
                found: dict[str, str] = {}
                try:
                    found = self._computed(rule, answers, [self._files[silo] for silo in participants], made)
                except (NotFound, WeightsError) as e:
                    if self._run.is_committed(self._round):
                        raise NotFound("another hub has committed the round, and removed its updates") from e
                    if all(map(self._rests, participants)):
                        raise
                changed = [silo for silo in participants if not self._rests(silo)]
                if not changed and found:
                    return dict(zip(participants, answers.shares, strict=True)), *self._stored(found, made)
                for silo in changed:
                    manifest = self._manifests.pop(silo)
                    if last_turn:
                        self._refuse(silo, f"{self._files[silo]}: {_WRITTEN_TO}")
                    else:
                        self._take_in(silo, manifest)
            raise AssertionError("unreachable: every last turn refuses a silo")

    def _computed(self, rule: Rule, answers: Answers, updates: Sequence[Path], made: Mapping[str, Path]) -> dict[str, str]:
        """The rule's computations, each written to its place in `made`: their sha256."""
        at: dict[Source, Path] = {
            BEFORE: self._reference, **dict(enumerate(updates)), **{last(part): path for part, path in self._recalled.items()}}
        found = {}
        for one in computations(rule, answers, self._recalled):
            found[one.name] = compute_file(
                one, [at[source] for source in one.sources], made[one.name], self._previous.spec.architecture, groups=answers.groups)
            at[one.name] = made[one.name]
        if rule.looks_back or answers.labelled:
            self._require_own_files()
        return found

    def _require_own_files(self) -> None:
        """What the hub itself brought into the round is still what it wrote; looked at afterwards, so that nobody changes it in between."""
        own = [(self._reference, self._previous.global_sha256), *((path, self._previous.server_state[part]) for part, path in self._recalled.items())]
        for path, sha256 in own:
            check_weights_file(path, spec=self._previous.spec, max_bytes=self._terms.max_bytes, sha256=sha256)

    def _stored(self, found: Mapping[str, str], made: Mapping[str, Path]) -> tuple[str, str, dict[Part, str]]:
        """Key and sha256 of the next model, and sha256 by part of what is remembered."""
        run, after = self._run, self._round + 1
        state = {part: found[part] for part in PARTS if part in found}
        for part, sha256 in state.items():
            run.store.give(run.keys.server_state(after, part, sha256), made[part])
        key = run.keys.global_model(after, found[MODEL])
        run.store.give(key, made[MODEL])
        return key, found[MODEL], state

    def _rests(self, silo: str) -> bool:
        """Whether the silo's file is still the one that was checked."""
        try:
            with WeightsFile(self._files[silo]) as file:
                return file.stamp == self._checked[silo].stamp
        except PermanentError:
            return False

    def _tell(self, event: str, **facts: object) -> None:
        self._on_event({"event": event, "round": self._round, **facts})


def _metrics(manifest: UpdateManifest, samples: int) -> dict[str, float]:
    """What a commit says of a participant."""
    loss = {} if manifest.loss is None else {"loss": manifest.loss}
    return {**loss, **manifest.metrics, "samples": float(samples)}


def _in_order(reasons: Mapping[str, str], silos: Sequence[str]) -> dict[str, str]:
    return {silo: reasons[silo] for silo in silos if silo in reasons}
