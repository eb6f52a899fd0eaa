"""Close round after round: wait for the silos' updates, check them, average them (Eq 7), commit.

    python -m fedhelp_components.aggregation --store URL --run RUN

Runs beside one silo_training per silo; `federation` calls the same `close_rounds` with the silos in one process.
"""

from __future__ import annotations

import time
from pathlib import Path

from fedhelp_components.session import Session, open_session, run_component, say
from fedhelp_core import telemetry
from fedhelp_core.algorithm.averaging import rule_of
from fedhelp_core.errors import NotFound
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.documents import Commit
from fedhelp_core.protocol.facts import SoftLabels
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.registry.methods import METHOD_PARTS, VALIDATION_SCORE
from fedhelp_core.softlabels.report import numbers
from fedhelp_core.store.waiting import Poller
from fedhelp_core.tracking.runs import AsyncTracker
from fedhelp_core.weights.check import check_weights_file


def run(*, store: str, endpoint_url: str, run_id: str, progress_file: str = "") -> str:
    """sha256 of the final global model.

    Raises:
        QuorumLost: a round had fewer updates than min_silos; every other party of the run ends too.
        RunAborted: another party ended the run.
    """
    session = open_session(store, run_id, endpoint_url)
    wait_for_supervisors(session)
    return close_rounds(session, progress_file=progress_file).global_sha256


def wait_for_supervisors(session: Session) -> None:
    """Until every silo has been asked to start: its node may be minutes behind this one, and a round's deadline is the silo's own time.

    At most half as long as a round may last: silos that are there give their hub up after two rounds' deadlines without a commit.

    Raises:
        RunAborted: another party ended the run.
    """
    run, federation = session.run, session.federation
    latest = run.latest_commit()
    number = 1 if latest is None else latest.round + 1
    until = time.monotonic() + federation.protocol.round_deadline / 2
    poller = Poller(run.store)
    pending = list(federation.silo_names) if number <= federation.algorithm.rounds else []
    while True:
        run.raise_if_aborted()
        pending = [silo for silo in pending if not _supervised(run, silo, number)]
        if not pending or time.monotonic() >= until:
            return
        poller.pause(until=until)


def _supervised(run: Run, silo: str, number: int) -> bool:
    """Whether somebody has asked the silo to start, or has given it up, or it has answered already."""
    keys = (run.keys.lease(silo), run.keys.absence(silo, number), run.keys.update(silo, number))
    return any(run.store.size(key) is not None for key in keys)


def close_rounds(session: Session, *, progress_file: str = "") -> Commit:
    """Commit every round that is not committed yet; the last commit."""
    federation, run = session.federation, session.run
    terms = Terms(
        max_bytes=federation.protocol.max_update_bytes, max_norm=federation.protocol.max_update_norm,
        max_norm_ratio=federation.protocol.max_norm_ratio, max_statistics_ratio=federation.protocol.max_statistics_ratio,
        min_direction=federation.protocol.min_direction, batch_size=federation.algorithm.batch_size,
        metrics=METHOD_PARTS[federation.algorithm.method].metrics)
    lines = ["| round | silos | left out | mean loss | seconds |", "| --- | --- | --- | --- | --- |"]
    with AsyncTracker.for_run(federation, run.run_id) as tracker:
        commit = run.wait_for_commit(0)
        samples = _checked(session)
        steps = {silo: federation.steps(images) for silo, images in samples.items()}
        labelled = {silo: federation.labelled_by(silo) for silo in samples}
        tracker.log_round(0, soft_label_numbers(session))
        for number in range(1, federation.algorithm.rounds + 1):
            started = time.monotonic()
            known = run.commit(number)
            commit = known or close_round(
                run, number, samples, min_silos=federation.quorum, deadline_s=federation.protocol.round_deadline, terms=terms,
                weighting=federation.algorithm.weighting, rule=rule_of(federation.algorithm), steps=steps, labelled=labelled)
            seconds = time.monotonic() - started
            tracker.log_round(number, round_metrics(commit, seconds if known is None else None))
            tracker.log_round(number - 1, validation_scores(commit))
            telemetry.round_committed(
                run.run_id, commit.round, seconds, accepted=commit.metrics, refused=commit.refused, absent=commit.absent)
            lines.append(progress_line(commit, seconds if known is None else None))
            if known is None:
                say(describe(commit, federation.algorithm.rounds, seconds))
            if progress_file:
                Path(progress_file).write_text("\n".join(lines) + "\n", encoding="utf-8")
            telemetry.push_if_configured(telemetry.AGGREGATION, run.run_id)  # every round: who watches a run wants to see it
    return commit


def _checked(session: Session) -> dict[str, int]:
    """Silo -> training images, as each silo's check counted them; the start model is the one that each of them drew.

    Raises:
        NotFound: a silo has not checked itself.
        PermanentError: the start model is another, or not what its commit says.
    """
    run, most = session.run, session.federation.protocol.max_update_bytes
    start, samples = run.commit(0), {}
    if start is None:
        raise NotFound(f"run {run.run_id!r}: the start model is gone; nothing may delete a commit")
    for silo in session.federation.silo_names:
        report = run.silo_report(silo)
        if report is None:
            raise NotFound(f"run {run.run_id!r}: silo {silo!r} has not checked itself; run check first")
        run.require_start(start, report.start_sha256)
        samples[silo] = report.samples.training
    path = run.global_file(start, max_bytes=most)
    try:
        check_weights_file(path, spec=start.spec, max_bytes=most, sha256=start.global_sha256)
    finally:
        run.store.release(path)
    return samples


def soft_label_numbers(session: Session) -> dict[str, float]:
    """What MLflow gets of the prefetch, as of round 0; nothing where the method uses no soft labels."""
    try:
        return numbers(session.run.fact(SoftLabels))
    except NotFound:
        return {}


def mean_loss(commit: Commit) -> float:
    """Mean over the participants of their first local loss; NaN without any."""
    losses = [m["loss"] for m in commit.metrics.values() if "loss" in m]
    return sum(losses) / len(losses) if losses else float("nan")


def round_metrics(commit: Commit, seconds: float | None) -> dict[str, float]:
    """What MLflow gets for a round: the mean loss, how many took part, and each silo's own metrics."""
    found: dict[str, float] = {"participants": float(len(commit.participants)), "mean_loss": mean_loss(commit)}
    if seconds is not None:
        found["round_seconds"] = seconds
    for silo, metrics in commit.metrics.items():
        found |= {f"{silo}.{name}": value for name, value in metrics.items() if name != VALIDATION_SCORE}
    for silo, moved in commit.norms.items():
        found |= {f"{silo}.update_norm": moved.trainable, f"{silo}.statistics_norm": moved.statistics}
        if moved.direction is not None:
            found[f"{silo}.update_direction"] = moved.direction
    return found


def validation_scores(commit: Commit) -> dict[str, float]:
    """What MLflow gets for the round before: each silo's score of the model that `commit`'s round began with, and their mean."""
    scores = {f"{silo}.{VALIDATION_SCORE}": metrics[VALIDATION_SCORE] for silo, metrics in commit.metrics.items() if VALIDATION_SCORE in metrics}
    return {**scores, f"mean_{VALIDATION_SCORE}": sum(scores.values()) / len(scores)} if scores else {}


def left_out(commit: Commit) -> dict[str, str]:
    """Silo -> why it is not in this round's average."""
    return {**commit.absent, **{silo: f"refused: {reason}" for silo, reason in commit.refused.items()}}


def describe(commit: Commit, rounds: int, seconds: float) -> str:
    """A round as one line for people."""
    missing = "".join(f"; without {silo}: {reason}" for silo, reason in left_out(commit).items())
    return f"round {commit.round} of {rounds}: {len(commit.participants)} silos, mean loss {mean_loss(commit):.3f}, {seconds:.1f} s{missing}"


def progress_line(commit: Commit, seconds: float | None) -> str:
    """A round as one row of the Markdown table."""
    missing = ", ".join(left_out(commit)) or "none"
    took = f"{seconds:.1f}" if seconds is not None else "before this start"
    return f"| {commit.round} | {len(commit.participants)} | {missing} | {mean_loss(commit):.4f} | {took} |"


if __name__ == "__main__":
    run_component("aggregation", __doc__, run)
