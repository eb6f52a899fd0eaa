"""The run's report from what lies in the store: nothing is remembered between components. No torch, no MLflow.

Called by evaluation, by promotion (which adds what the gate decided) and by `fedhelp run` for its closing table.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedhelp_components.images import VERSION
from fedhelp_core.config.federation import Federation
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.objectives.metrics import balanced_accuracy_interval
from fedhelp_core.printable import printable
from fedhelp_core.protocol.documents import Commit, ModelScores, SiloEvaluation, SplitSizes
from fedhelp_core.protocol.facts import Candidate, Fact, Kinds, LeftOut, Promotion, Served, SoftLabels, SoftLabelSummary, TeacherReport, Tracked
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.protocol.report_check import require_credible_evaluation
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.study_record import known_study
from fedhelp_core.registry.methods import VALIDATION_SCORE
from fedhelp_core.report.facts import (
    GateFacts,
    PublicExample,
    ReportFacts,
    RoundReport,
    SiloFacts,
    SiloScores,
    SoftLabelFacts,
    StudyFacts,
    TeacherFacts,
)
from fedhelp_core.report.page import render_report
from fedhelp_core.report.terminal import render_summary_table
from fedhelp_core.store.base import Store

summary_table = render_summary_table
F = TypeVar("F", bound=Fact)


def write_report(store: Store, run_id: str, federation: Federation, copy: Path | None = None) -> None:
    """Render the report into runs/<run>/report.html, and into `copy` where given."""
    facts, keys = facts_of_run(store, run_id, federation), RunKeys(run_id)
    store.put(keys.rounds_csv, rounds_csv(facts).encode())
    page = render_report(facts).encode()
    store.put(keys.report, page)
    if copy is not None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(page)


def facts_of_run(store: Store, run_id: str, federation: Federation) -> ReportFacts:
    """Everything that the store holds of a run; parts that are not there yet are left out."""
    run = Run(store, run_id)
    commits = _commits(run)
    algorithm = federation.algorithm
    soft_labels = _soft_labels(run)
    candidate, left_out, tracked = _fact(run, Candidate), _fact(run, LeftOut), _fact(run, Tracked)
    final = commits[-1] if commits else None
    return ReportFacts(
        run_id=run_id, federation=federation.name, method=algorithm.method, normalisation=algorithm.normalisation,
        silos=_silos(run, federation), metrics=federation.task.scored_by,
        classes=federation.task.classes, answered=federation.task.answered, parameters=_parameters(federation),
        rounds=_rounds(store, commits), planned_rounds=algorithm.rounds, scores=_scores(run, federation, final) if final else {},
        soft_labels=soft_labels,
        final_sha256=final.global_sha256 if final and final.round == algorithm.rounds else None,
        lineage={
            "config sha256": federation.digest(), **({} if soft_labels else {"distillation set": "none used"}), "FedHelp's version": VERSION,
            "global model one round before, sha256": (final.previous_sha256 or "") if final else "",
        },
        tracking={
            **({"MLflow": tracked.address} if tracked else {}),
            **({"registered model": f"{federation.registered_name} version {candidate.version}"} if candidate else {})},
        card="card.html" if run.has_fact(Served) else "",
        enough_validation=federation.evaluation.enough_validation(federation.task.form),
        operating_point=federation.evaluation.operating_point if not federation.task.per_pixel else "",
        silos_left_out=left_out.root if left_out else {}, gate=_gate(run), study=_study(run, federation),
        rounds_file=run.keys.rounds_csv.rpartition("/")[2], aborted=run.abort_reason(), finished_at=final.created if final else None)


def _fact(run: Run, kind: type[F]) -> F | None:
    try:
        return run.fact(kind)
    except NotFound:
        return None


def _commits(run: Run) -> list[Commit]:
    """Commits 1..last, in order."""
    latest = run.latest_commit()
    numbers = range(1, latest.round + 1) if latest is not None else range(0)
    return [commit for commit in map(run.commit, numbers) if commit is not None]


def _silos(run: Run, federation: Federation) -> tuple[SiloFacts, ...]:
    kinds = _fact(run, Kinds)
    found = []
    for silo in federation.silos:
        samples = _samples(run, silo.name)
        found.append(SiloFacts(
            name=silo.name, kind=kinds.of(silo.name) if kinds else silo.kind, training_samples=samples.training if samples else None,
            validation_samples=samples.validation if samples else None, test_samples=samples.test if samples else None))
    return tuple(found)


def _samples(run: Run, silo: str) -> SplitSizes | None:
    try:
        report = run.silo_report(silo)
    except PermanentError:  # check has said so
        return None
    return report.samples if report else None


def _parameters(federation: Federation) -> dict[str, object]:
    algorithm = federation.algorithm.model_dump(mode="json")
    optimizer = algorithm.pop("optimizer")
    return {
        "task": federation.task.name, "image size": f"{federation.task.image_size} px", **{k.replace("_", " "): v for k, v in algorithm.items()},
        "optimizer": f"Adam, learning rate {optimizer['learning_rate']:g}, weight decay {optimizer['weight_decay']:g}",
        **({"operating point": federation.evaluation.operating_point} if not federation.task.per_pixel else {}),
        "seed": federation.runtime.seed, "threads per silo": federation.runtime.threads, "min silos": federation.quorum,
        "round deadline": f"{federation.protocol.round_deadline:g} s",
    }


def _rounds(store: Store, commits: list[Commit]) -> tuple[RoundReport, ...]:
    found = []
    for before, commit, after in zip([None, *commits], commits, [*commits[1:], None], strict=False):
        size = store.size(commit.global_key) or 0
        took_part = len(commit.participants)
        found.append(RoundReport(
            number=commit.round, participants=commit.participants, absent=commit.absent, refused=commit.refused,
            losses={silo: {k: v for k, v in m.items() if k.endswith("_loss")} for silo, m in commit.metrics.items()},
            validation={
                silo: m[VALIDATION_SCORE] for silo, m in (after.metrics if after is not None else {}).items() if VALIDATION_SCORE in m},
            norms={silo: moved.trainable for silo, moved in commit.norms.items()}, bytes_up=size * took_part, bytes_down=size * took_part,
            seconds=_seconds_between(before, commit) if before is not None else None))
    return tuple(found)


def _seconds_between(before: Commit, commit: Commit) -> float | None:
    if not (before.created and commit.created):
        return None
    return (datetime.fromisoformat(commit.created) - datetime.fromisoformat(before.created)).total_seconds()


def _scores(run: Run, federation: Federation, final: Commit) -> dict[str, SiloScores]:
    found = {}
    for silo in federation.silo_names:
        try:
            evaluation = evaluation_of(run, silo, federation.task, final)
        except PermanentError:  # evaluation has left it out and said so
            continue
        if evaluation is not None:
            models = {evaluation.deployed: evaluation.deployed_model, **evaluation.models}
            found[silo] = SiloScores(
                models={name: model.scores for name, model in models.items()},
                confusion=None if federation.task.form in ("labels", "regions") else tuple(tuple(row) for row in evaluation.deployed_model.confusion),
                operating_point=evaluation.deployed_model.operating_point if not federation.task.per_pixel else "",
                interval=interval_of(evaluation.deployed_model, federation.task), of_each=evaluation.deployed_model.of_each)
    return found


def interval_of(model: ModelScores, task: TaskConfig) -> tuple[float, float] | None:
    """Of the headline metric: from the counts of classes, or as the hospital took it from its masks; None of a metric that neither tells."""
    if task.headline.name == "balanced_accuracy" and task.form == "classes":
        return balanced_accuracy_interval(np.asarray(model.confusion, np.int64))
    return model.interval if task.headline.name == "dice" else None


def _study(run: Run, federation: Federation) -> StudyFacts | None:
    """What is known of other methods; a report is no worse for a damaged record."""
    try:
        tests = {silo: evaluation.test_sha256 for silo in federation.silo_names if (evaluation := run.evaluation(silo)) is not None}
        record = known_study(run.store, federation, tests)
    except PermanentError:
        return None
    return StudyFacts(seeds=len(record.seeds), methods=record.methods) if record is not None else None


def rounds_csv(facts: ReportFacts) -> str:
    """A line a round and silo: whether it answered, losses, validation score, how far its update moved, seconds, and why it is not in the average."""
    losses = list(dict.fromkeys(name for closed in facts.rounds for found in closed.losses.values() for name in found))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["round", "silo", "outcome", *losses, VALIDATION_SCORE, "update_norm", "round_seconds", "reason"])
    for closed in facts.rounds:
        groups = (("answered", closed.participants), ("absent", closed.absent), ("refused", closed.refused))
        for outcome, silo in ((outcome, silo) for outcome, silos in groups for silo in silos):
            found = closed.losses.get(silo, {})
            writer.writerow([
                closed.number, silo, outcome, *(_plain(found.get(name)) for name in losses),
                *(_plain(number) for number in (closed.validation.get(silo), closed.norms.get(silo), closed.seconds)),
                printable({**closed.absent, **closed.refused}.get(silo, ""))])
    return out.getvalue()


def _plain(value: float | None) -> str:
    """Six digits, or nothing where there is no number."""
    return f"{value:.6g}" if value is not None and math.isfinite(value) else ""


def evaluation_of(run: Run, silo: str, task: TaskConfig, final: Commit) -> SiloEvaluation | None:
    """The silo's evaluation of the model after `final`, fit for `task`; None before.

    Raises:
        PermanentError: it is damaged, of another model, or cannot be true of this task and of what the silo's check found.
    """
    evaluation = run.evaluation(silo)
    if evaluation is not None:
        if evaluation.global_sha256 != final.global_sha256:
            raise PermanentError(f"global_sha256: the final model's {final.global_sha256[:12]}... expected, got {evaluation.global_sha256[:12]}...")
        report = run.silo_report(silo)
        if report is None:
            raise PermanentError("the silo has not checked itself, so there is nothing to hold its evaluation against")
        require_credible_evaluation(evaluation, report, run.fact(Kinds).of(silo), task)
    return evaluation


def _soft_labels(run: Run) -> SoftLabelFacts | None:
    fact = _fact(run, SoftLabels)
    if fact is None:
        return None
    asked = tuple(_teacher(name, teacher) for name, teacher in fact.teachers.items())
    facts = SoftLabelFacts(
        sha256=fact.sha256, images=fact.images, classes=fact.classes, asked=asked, requests=sum(teacher.requests for teacher in asked))
    found = _fact(run, SoftLabelSummary)
    if found is None:  # evaluation has not come so far, or could not read the set
        return facts
    return replace(
        facts, teachers=found.teachers, entropies=found.entropies, most_entropy=found.most_entropy, favourites=found.favourites,
        agreements=found.agreements,
        examples=tuple(PublicExample(image_HWC=example.image_HWC, favourites=example.favourites) for example in found.examples))


def _teacher(name: str, teacher: TeacherReport) -> TeacherFacts:
    mine = teacher.run
    return TeacherFacts(
        name=name, asked=teacher.asked, cached=teacher.cached, requests=mine.requests, retried=mine.retried,
        failed=mine.refused + mine.unusable, in_doubt=mine.in_doubt, cost=mine.cost, cost_ever=teacher.ever.cost,
        currency=teacher.currency, latency_p50=mine.latency_p50, latency_p95=mine.latency_p95)


def _gate(run: Run) -> GateFacts | None:
    fact = _fact(run, Promotion)
    return GateFacts(decision=fact.outcome, reasons=(fact.decision,)) if fact else None
