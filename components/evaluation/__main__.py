"""Have every silo score its model on its own test images; register the global model as a candidate; write the report.

    python -m fedhelp_components.evaluation --store URL --run RUN --report report.html

The candidate under `normalisation: silo` has no batch norms of its own: theirs are recomputed on the public images, and the
model version says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelp_components.dispatch.supervisor import require_none_failed, run_everywhere
from fedhelp_components.evaluation.candidate import register_candidate
from fedhelp_components.evaluation.deployed import deployed_model
from fedhelp_components.evaluation.report import write_report
from fedhelp_components.evaluation.soft_labels import keep_summary
from fedhelp_components.session import Session, dispatcher_for, end, open_session, run_parser, say
from fedhelp_core.errors import NotFound
from fedhelp_core.facts import write_fact
from fedhelp_core.rounds import Commit
from fedhelp_core.tasks import TASKS, Metric


@dataclass(frozen=True)
class Evaluated:
    """What the silos' scores came to."""

    metrics: dict[str, float]
    classes: list[str]
    confusion: list[list[int]]
    model_version: str


def run(*, store: str, endpoint_url: str, run_id: str, report_file: str = "") -> Evaluated:
    """Scores of all silos, the registered candidate's version, and the report on disk.

    Raises:
        JobFailed: fewer than `protocol.min_silos` could evaluate.
        NotFound: the last round is not committed yet.
    """
    session = open_session(store, run_id, endpoint_url)
    final = final_commit(session)
    documents = evaluate_silos(session)
    metrics = summary(documents, TASKS[session.federation.task.name].metrics)
    version = register_candidate(session, final, documents, metrics)
    write_fact(session.store, run_id, "candidate", {"version": version, "global_sha256": final.global_sha256, "metrics": metrics})
    say(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    confusion = summed_confusion(documents, len(session.federation.task.classes))
    keep_summary(session.store, run_id)
    write_report(session.store, run_id, session.federation, Path(report_file) if report_file else None)
    return Evaluated(metrics, list(session.federation.task.classes), confusion, version)


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


def evaluate_silos(session: Session) -> dict[str, dict[str, Any]]:
    """Evaluations by silo; those that are there already are not asked for again, and a silo that cannot answer is left out.

    Raises:
        JobFailed: fewer than `protocol.min_silos` could evaluate.
    """
    federation, run = session.federation, session.run
    dispatcher = dispatcher_for(federation, run.run_id)
    try:
        failed = run_everywhere(
            "evaluate", federation, run, dispatcher, say, lambda silo: run.evaluation(silo) is not None,
            deadline_s=federation.protocol.round_deadline)
    finally:
        dispatcher.close()
    documents: dict[str, dict[str, Any]] = {}
    for silo in federation.silo_names:
        document = run.evaluation(silo)
        if document is None or not document.get("models"):
            failed.setdefault(silo, "its evaluation holds no scores; look at its log")
        else:
            documents[silo] = document
    if len(documents) < federation.protocol.min_silos:
        require_none_failed(failed, "evaluation")
    for silo, reason in failed.items():
        say(f"silo {silo}: left out of the evaluation: {reason}")
    return documents


def summary(documents: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, float]:
    """By the first metric: each silo's score, the small silos' mean, the mean of all, the worst silo. By the others: the means."""
    headline, *others = metrics
    scores = _scores_by(documents, headline)
    found = {**scores, **_means(documents, scores), "worst_silo": headline.worst(scores.values())}
    for metric in others:
        found |= {f"{name}_{metric.name}": value for name, value in _means(documents, _scores_by(documents, metric)).items()}
    return found


def _scores_by(documents: Mapping[str, Mapping[str, Any]], metric: Metric) -> dict[str, float]:
    return {silo: float(deployed_model(document)["scores"][metric.name]) for silo, document in documents.items()}


def _means(documents: Mapping[str, Mapping[str, Any]], scores: Mapping[str, float]) -> dict[str, float]:
    """Over the silos that have a score; without any, no mean."""
    groups = {
        "small_silos_mean": [scores[silo] for silo, document in documents.items() if document["kind"] == "small"],
        "all_silos_mean": list(scores.values())}
    finite = {name: [value for value in values if math.isfinite(value)] for name, values in groups.items()}
    return {name: sum(values) / len(values) for name, values in finite.items() if values}


def summed_confusion(documents: dict[str, dict[str, Any]], classes: int) -> list[list[int]]:
    """Counts (C, C) of images, or of pixels of masks, over all silos' test images, of the models that they deploy."""
    total = [[0] * classes for _ in range(classes)]
    for document in documents.values():
        for i, row in enumerate(deployed_model(document)["confusion"]):
            for j, count in enumerate(row):
                total[i][j] += int(count)
    return total


def main() -> None:
    """Parse, evaluate, print."""
    parser = run_parser("evaluation", __doc__)
    parser.add_argument("--report", default="", help="where to write the HTML report")
    arguments = parser.parse_args()
    end("evaluation", lambda: say(json.dumps(run(
        store=arguments.store, endpoint_url=arguments.endpoint_url, run_id=arguments.run, report_file=arguments.report).metrics)))


if __name__ == "__main__":
    main()
