"""Have every silo score its model on its own test images; register the global model as a candidate; write the report.

    python -m fedhelp_components.evaluation --store URL --run RUN --report report.html

The candidate under `normalisation: silo` has no batch norms of its own: theirs are recomputed on the public images, and the
model version says so.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedhelp_components.evaluation.left_out import silos_left_out
from fedhelp_components.evaluation.report import evaluation_of, write_report
from fedhelp_components.evaluation.soft_labels import keep_summary
from fedhelp_components.session import Session, dispatcher_for, ends_in_mlflow, open_session, run_component, say
from fedhelp_core import telemetry
from fedhelp_core.config.task import TaskConfig
from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.protocol.documents import Commit, SiloEvaluation
from fedhelp_core.protocol.facts import Candidate, LeftOut
from fedhelp_core.registry.metrics import Metric
from fedhelp_core.tracking.server import import_ahead
from fedhelp_dispatch.request import Outcome
from fedhelp_dispatch.supervisor import require_none_failed, run_everywhere, unanswered

_MOST_WATCHED = 1000  # series of one metric, which Prometheus keeps for each federation
_WIDEST_LABEL = 12  # letters: eight such columns fit into the UI's side panel


@dataclass(frozen=True)
class Evaluated:
    """What the silos' scores came to."""

    metrics: dict[str, float]
    classes: list[str]
    confusion: list[list[int]]
    model_version: str
    left_out: dict[str, str]
    """Silo -> which rounds it missed, or why it was not evaluated."""


def run(*, store: str, endpoint_url: str, run_id: str, report_file: str = "") -> Evaluated:
    """Scores of all silos, the registered candidate's version, and the report on disk.

    Raises:
        JobFailed, RetryableError: fewer than the federation's quorum could evaluate.
        NotFound: the last round is not committed yet.
    """
    session = open_session(store, run_id, endpoint_url)
    with ends_in_mlflow(session.federation, run_id):
        return _evaluate(session, run_id, report_file)


def _evaluate(session: Session, run_id: str, report_file: str) -> Evaluated:
    final = final_commit(session)
    with _imports_meanwhile():
        evaluations, failed = evaluate_silos(session, final)
    from fedhelp_components.evaluation.candidate import register_candidate

    commits = (session.run.commit(number) for number in range(1, final.round + 1))
    left_out = silos_left_out(
        [commit for commit in commits if commit is not None], {silo: outcome.reason for silo, outcome in failed.items()},
        session.federation.silo_names)
    session.run.note(LeftOut(left_out))
    metrics = {**summary(evaluations, session.federation.task.scored_by), "silos_left_out": float(len(left_out))}
    version = register_candidate(session, final, evaluations, metrics, tuple(left_out))
    session.run.settle(Candidate(version=version, global_sha256=final.global_sha256, metrics=metrics))
    say(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    headline = session.federation.task.headline
    if headline.larger_is_better:  # of a distance the alert would call a better model a worse one
        telemetry.scored(
            session.federation.name, {silo: found.deployed_model.scores[headline.name] for silo, found in evaluations.items()},
            scores_of_each(evaluations, session.federation.task))
        telemetry.keep_if_configured(telemetry.EVALUATION, session.federation.name)
    classes, confusion = summed_confusion(evaluations, session.federation.task)
    for silo, reason in left_out.items():
        say(f"left out: {silo}: {reason}")
    keep_summary(session.run)
    write_report(session.store, run_id, session.federation, Path(report_file) if report_file else None)
    return Evaluated(metrics, classes, confusion, version, left_out)


@contextmanager
def _imports_meanwhile() -> Iterator[None]:
    """While the silos score their models, a thread imports what takes seconds: PyTorch, its export, MLflow. So the silos are asked at once."""
    thread = threading.Thread(target=_import, name="fedhelp-imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import() -> None:
    with suppress(Exception):  # what is wrong is met again, where it is told
        import torch

        import_ahead()
        torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 1),))  # imports half of PyTorch when it is called first


def final_commit(session: Session) -> Commit:
    """The commit of the last round.

    Raises:
        NotFound: it is not there yet.
    """
    rounds = session.federation.algorithm.rounds
    commit = session.run.commit(rounds)
    if commit is None:
        raise NotFound(f"run {session.run.run_id!r}: round {rounds} is not committed yet; let aggregation (or federation) finish first")
    return commit


def evaluate_silos(session: Session, final: Commit) -> tuple[dict[str, SiloEvaluation], dict[str, Outcome]]:
    """Evaluations of the final model by silo, and how it ended where there is none; those that are there already are not asked for again.

    Raises:
        JobFailed, RetryableError: fewer than the federation's quorum could evaluate.
    """
    federation, run = session.federation, session.run
    dispatcher = dispatcher_for(federation, run.run_id)
    try:
        failed = run_everywhere(
            "evaluate", federation, run, dispatcher, say, run.has_evaluation,
            deadline_s=federation.protocol.round_deadline)
    finally:
        dispatcher.close()
    evaluations: dict[str, SiloEvaluation] = {}
    for silo in federation.silo_names:
        try:
            evaluation = evaluation_of(run, silo, federation.task, final)
        except PermanentError as e:
            failed[silo] = unanswered(f"its evaluation is not taken: {e}")
            continue
        if evaluation is None:
            failed.setdefault(silo, unanswered("it left no evaluation; look at its log"))
        else:
            evaluations[silo] = evaluation
    if len(evaluations) < federation.quorum:
        require_none_failed(failed, "evaluation")
    for silo, outcome in failed.items():
        say(f"silo {silo}: left out of the evaluation: {outcome.reason}")
    return evaluations, failed


def summary(evaluations: Mapping[str, SiloEvaluation], metrics: Sequence[Metric]) -> dict[str, float]:
    """By the first metric: each silo's score, the small silos' mean, the mean of all, the worst silo. By the others: the means."""
    headline, *others = metrics
    scores = _scores_by(evaluations, headline)
    found = {**scores, **_means(evaluations, scores), "worst_silo": headline.worst(scores.values())}
    for metric in others:
        found |= {f"{name}_{metric.name}": value for name, value in _means(evaluations, _scores_by(evaluations, metric)).items()}
    return found


def scores_of_each(evaluations: Mapping[str, SiloEvaluation], task: TaskConfig) -> dict[str, dict[str, float]]:
    """Silo -> finding, foreground or region -> its own main score; nothing of a task with one score, or with more than anybody watches."""
    if len(evaluations) * len(task.answered) > _MOST_WATCHED:
        return {}
    return {silo: dict(zip(task.answered, found.deployed_model.of_each[task.headline.name], strict=True))
            for silo, found in evaluations.items() if task.headline.name in found.deployed_model.of_each}


def _scores_by(evaluations: Mapping[str, SiloEvaluation], metric: Metric) -> dict[str, float]:
    return {silo: evaluation.deployed_model.scores[metric.name] for silo, evaluation in evaluations.items()}


def _means(evaluations: Mapping[str, SiloEvaluation], scores: Mapping[str, float]) -> dict[str, float]:
    """Over the silos that have a score; without any, no mean."""
    groups = {
        "small_silos_mean": [scores[silo] for silo, evaluation in evaluations.items() if evaluation.kind == "small"],
        "all_silos_mean": list(scores.values())}
    finite = {name: [value for value in values if math.isfinite(value)] for name, values in groups.items()}
    return {name: sum(values) / len(values) for name, values in finite.items() if values}


def summed_confusion(evaluations: Mapping[str, SiloEvaluation], task: TaskConfig) -> tuple[list[str], list[list[int]]]:
    """Classes, and counts (C, C) of images, or of pixels of masks, over all silos' test images, of the models that they deploy.

    Findings are counted all together: seen or not, and found or not; regions likewise.
    """
    if task.form in ("labels", "regions"):
        rows = [row for evaluation in evaluations.values() for row in evaluation.deployed_model.confusion]
        sums = [sum(row[number] for row in rows) for number in range(4)]
        return ["not seen", "seen"] if task.form == "labels" else ["outside", "inside"], [sums[:2], sums[2:]]
    classes = len(task.classes)
    total = [[0] * classes for _ in range(classes)]
    for evaluation in evaluations.values():
        for i, row in enumerate(evaluation.deployed_model.confusion):
            for j, count in enumerate(row):
                total[i][j] += count
    return list(task.classes), total


def narrow(classes: Sequence[str]) -> list[str]:
    """Names of classes that leave a confusion matrix as wide as Kubeflow's panel: numbered where a long one is cut."""
    return [name if len(name) <= _WIDEST_LABEL else f"{number} {name[:_WIDEST_LABEL - 3]}…" for number, name in enumerate(classes)]


if __name__ == "__main__":
    run_component(
        "evaluation", __doc__, run, told=lambda evaluated: json.dumps(evaluated.metrics), report_file="[where to write the HTML report]")
