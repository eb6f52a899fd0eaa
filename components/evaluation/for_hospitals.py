"""What all hospitals may read of a run: scores without the names of those who did not agree, numbers of images, what the model was made from.

For the model card and for the store's record of models: called by evaluation and by promotion/record.py. No PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedhelp_components.evaluation.report import evaluation_of, interval_of
from fedhelp_core.config.federation import Federation
from fedhelp_core.errors import PermanentError
from fedhelp_core.protocol.documents import Commit, ModelScores, SiloEvaluation, SplitSizes
from fedhelp_core.protocol.facts import Candidate, SoftLabels, StartedFrom
from fedhelp_core.protocol.model_record import HospitalScores, Lineage, Parent, PretrainedWeights
from fedhelp_core.protocol.run import Run


def evaluations_of(run: Run, federation: Federation, final: Commit) -> dict[str, SiloEvaluation]:
    """By silo; those that evaluation did not take are left out, as it did."""
    found = {}
    for silo in federation.silo_names:
        try:
            evaluation = evaluation_of(run, silo, federation.task, final)
        except PermanentError:
            continue
        if evaluation is not None:
            found[silo] = evaluation
    return found


def shared_model(evaluation: SiloEvaluation) -> ModelScores:
    """Of the model that is registered, whatever the hospital deploys."""
    return evaluation.models.get("proxy", evaluation.deployed_model)


def hospital_scores(run: Run, federation: Federation, evaluations: Mapping[str, SiloEvaluation]) -> tuple[HospitalScores, ...]:
    """The registered model in those that agreed to be named, in the federation's order; then the others' scores, the best first.

    So the order of those without a name says nothing.
    """
    metric = federation.task.headline
    named, others = [], []
    for silo, evaluation in evaluations.items():
        scores = dict(shared_model(evaluation).scores)
        if evaluation.named:
            named.append(HospitalScores(
                name=silo, scores=scores, interval=interval_of(shared_model(evaluation), federation.task), kind=evaluation.kind,
                images=_images(run, silo)))
        else:
            others.append(HospitalScores(name="", scores={metric.name: scores[metric.name]}))
    worst_last = sorted(others, key=lambda one: (math.isnan(one.scores[metric.name]), -metric.gain(one.scores[metric.name], 0.0)))
    return (*named, *worst_last)


def means_of(run: Run, federation: Federation) -> dict[str, float]:
    """Means and the worst hospital, as evaluation noted them."""
    return without_names(run.fact(Candidate).metrics, federation) if run.has_fact(Candidate) else {}


def without_names(metrics: Mapping[str, float], federation: Federation) -> dict[str, float]:
    """`metrics` but for what is of one silo."""
    return {name: value for name, value in metrics.items() if name not in federation.silo_names and name != "silos_left_out"}


def lineage_of(run: Run, federation: Federation, final: Commit, software: Mapping[str, str]) -> Lineage:
    """What the final model was made from."""
    images = [samples for silo in final.participants if (samples := _images(run, silo)) is not None]
    return Lineage(
        federation_sha256=federation.digest(), distillation_set_sha256=run.fact(SoftLabels).sha256 if run.has_fact(SoftLabels) else "",
        rounds=final.round, hospitals=len(final.participants), training_images=sum(one.training for one in images),
        test_images=sum(one.test for one in images), software=dict(software),
        parent=parent_of(run),
        pretrained={which: PretrainedWeights(sha256=model.sha256, licence=model.licence, source=model.source)
                    for which, model in federation.algorithm.pretrained.items()})


def parent_of(run: Run) -> Parent | None:
    """What the run started from; None: from its seed."""
    if not run.has_fact(StartedFrom):
        return None
    start = run.fact(StartedFrom)
    return Parent(sha256=start.weights.sha256, model=start.model if start.version else "", version=start.version)


def _images(run: Run, silo: str) -> SplitSizes | None:
    report = run.silo_report(silo)
    return report.samples if report is not None else None
