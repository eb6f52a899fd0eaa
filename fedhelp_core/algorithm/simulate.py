"""A whole federation in one process: the oracle that the process, pod and cluster paths must equal bit for bit.

`simulate` runs one method with one seed on data that lies in memory. Called by `fedhelp simulate` and by tests. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedhelp_core.algorithm.averaging import rule_of, shares_of
from fedhelp_core.algorithm.class_shares import Shares, pooled_of_decisions
from fedhelp_core.algorithm.inference import Evaluated, EvaluationData, ModelName, evaluated_models
from fedhelp_core.algorithm.local_update import CPU, LocalResult, SiloData, SiloState, UpdateSettings, Weights, initial_weights, local_update
from fedhelp_core.algorithm.objective import Objective
from fedhelp_core.algorithm.server import Answers, Part, next_round
from fedhelp_core.config.federation import Federation
from fedhelp_core.config.pretrained import WhichModel
from fedhelp_core.registry.methods import METHOD_PARTS

GUEST = "guest"


@dataclass(frozen=True, kw_only=True)
class SimulatedSilo:
    """A silo's data in memory; shapes as in SiloData."""

    kind: str
    """'small' or 'large'; or 'guest': a hospital outside the federation, which trains nothing and is scored with the global model."""
    training: SiloData
    test_images_NCHW: Tensor
    test_labels_N: Tensor
    validation_images_NCHW: Tensor = field(default_factory=lambda: torch.empty(0))
    """How the silo decides, and which of its models a large one deploys; there may be none."""
    validation_labels_N: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What a round left behind: mean local losses by silo, and test scores where this round was evaluated."""

    round: int
    losses: dict[str, dict[str, float]]
    scores: dict[str, dict[ModelName, dict[str, float]]] = field(default_factory=dict)
    """silo -> model ('large' | 'proxy', the deployed one first) -> metric -> value."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The final global weights, what stayed in each silo, and every round's facts."""

    weights: Weights
    states: dict[str, SiloState]
    history: list[RoundFacts]
    evaluated: dict[str, dict[ModelName, Evaluated]]
    """silo -> its models after the last round, the deployed one first, with what they said of each image."""


def simulate(
    federation: Federation, objective: Objective, silos: Mapping[str, SimulatedSilo], *, evaluate_every: int = 0,
    on_round: Callable[[RoundFacts], None] | None = None, device: torch.device = CPU,
    pretrained: Mapping[WhichModel, Weights] | None = None,
) -> SimulationResult:
    """Run `federation.algorithm.method` with `federation.runtime.seed` over `silos`, in the order of the federation's file.

    Scores are taken after the last round, and every `evaluate_every` rounds where that is not 0. Silos that lack soft
    labels simply skip Eq 2, so `public_*` of their data must be set for the methods that use it.
    """
    algorithm, seed = federation.algorithm, federation.runtime.seed
    settings = {
        name: UpdateSettings(
            algorithm=algorithm, objective=objective.labelling(federation.labelled_by(name)), seed=seed, silo=name,
            kind=silos[name].kind, device=device, precision=federation.runtime.precision, pretrained=pretrained or {})
        for name in (*federation.silo_names, *(name for name, silo in silos.items() if silo.kind == GUEST))
    }
    weights = initial_weights(algorithm, objective, seed=seed, pretrained=pretrained)
    states = {name: SiloState.empty() for name in settings}
    data = evaluation_data(federation, objective, silos)
    evaluated: dict[str, dict[ModelName, Evaluated]] = {}
    history: list[RoundFacts] = []
    samples = {name: len(silos[name].training.labels_N) for name in federation.silo_names}
    answers = Answers.of(
        federation.silo_names, samples, {name: federation.steps(n) for name, n in samples.items()}, algorithm.weighting,
        {name: federation.labelled_by(name) for name in samples})
    remembered: dict[Part, Weights] = {}
    for number in range(1, algorithm.rounds + 1):
        results: dict[str, LocalResult] = {}
        for name in federation.silo_names:
            results[name] = local_update(
                weights, states[name], silos[name].training, settings[name], round_number=number, control=remembered.get("control"))
        states |= {name: result.state for name, result in results.items()}
        if METHOD_PARTS[algorithm.method].averaged:
            weights, remembered = next_round(rule_of(algorithm), answers, weights, remembered, [r.weights for r in results.values()])
        wanted = number == algorithm.rounds or (evaluate_every and number % evaluate_every == 0)
        if wanted:
            evaluated = {
                name: evaluated_models(weights, states[name], settings[name], federation.evaluation, data[name]) for name in settings}
        scores = {silo: {name: model.scored.scores for name, model in models.items()} for silo, models in evaluated.items()} if wanted else {}
        facts = RoundFacts(round=number, losses={name: r.metrics for name, r in results.items()}, scores=scores)
        history.append(facts)
        if on_round is not None:
            on_round(facts)
    return SimulationResult(weights=weights, states=states, history=history, evaluated=evaluated)


def evaluation_data(federation: Federation, objective: Objective, silos: Mapping[str, SimulatedSilo]) -> dict[str, EvaluationData]:
    """By silo what its models are evaluated with, and what check would have pooled of their counts."""
    counts = {name: objective.counts_of_decisions(silo.training.labels_N) for name, silo in silos.items()}
    pooled: list[Shares] | None = None
    if objective.decides:
        taking_part = [counts[name] for name in federation.silo_names]
        weights = shares_of([len(silos[name].training.labels_N) for name in federation.silo_names], federation.algorithm.weighting)
        pooled = objective.learnt_shares(pooled_of_decisions(taking_part, weights, findings=objective.form == "labels").tolist())
    return {
        name: EvaluationData(
            test_images_NCHW=silo.test_images_NCHW, test_labels_N=silo.test_labels_N, validation_images_NCHW=silo.validation_images_NCHW,
            validation_labels_N=silo.validation_labels_N, decision_counts=counts[name], federation_shares=pooled)
        for name, silo in silos.items()}
