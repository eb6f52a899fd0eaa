"""Compare the candidate with the champion on the silos' own test images; promote it if the gate lets it through.

    python -m fedhelp_components.promotion --store URL --run RUN --model-version 3
"""

from __future__ import annotations

from typing import Literal

from fedhelp_components.evaluation.report import write_report
from fedhelp_components.promotion.record import Decision, chain_of, tell_hospitals
from fedhelp_components.session import open_session, run_component, say
from fedhelp_core import telemetry
from fedhelp_core.protocol.facts import Promotion
from fedhelp_core.tracking.gate import gate
from fedhelp_core.tracking.registry import Registry


def run(*, store: str, endpoint_url: str, run_id: str, model_version: str) -> str:
    """One sentence: what was decided, and why."""
    session = open_session(store, run_id, endpoint_url)
    federation = session.federation
    name = federation.registered_name
    registry, metric = Registry.for_federation(federation), federation.task.headline
    chain_of(session.store, registry, name)  # where nothing can be added to the record, nothing is decided
    outcome: Literal["promoted", "kept", "manual"] = "manual"
    reasons, before = "", None
    if federation.promotion.mode == "manual":
        decision = f"{name} version {model_version} stays a candidate (promotion.mode is manual); promote it with: fedhelp promote"
    else:
        candidate = registry.scores_of(name, model_version)
        champion = registry.champion(name)
        if champion == model_version:
            outcome, decision = "promoted", f"{name} version {model_version} is the champion already"
        elif champion is not None and registry.same_weights(name, model_version, champion):
            outcome, decision = "kept", f"{name} version {model_version} has the same weights as the champion, version {champion}, which stays it"
        else:
            verdict = gate(
                candidate, registry.scores_of(name, champion) if champion else None, metric,
                min_improvement=federation.promotion.min_improvement, max_regression=federation.promotion.max_regression,
                classes=federation.task.classes)
            if verdict.promote:
                registry.promote(name, model_version)
            outcome = "promoted" if verdict.promote else "kept"
            reasons = "; ".join(verdict.reasons)
            became = "became the champion" if verdict.promote else "stays a candidate"
            decision = f"{name} version {model_version} {became}: {reasons}"
        if outcome == "promoted":
            before = registry.champion_before(name)
            told = tell_hospitals(session.store, registry, name, Decision(kind="promoted", decided_by="gate", reason=reasons or decision))
            say(f"hospitals read it as record {told.record.number} of {name}")
    settled = session.run.settle(Promotion(decision=decision, outcome=outcome, reasons=reasons, before=before))
    write_report(session.store, run_id, federation)
    shards = federation.public_set.shards if federation.public_set is not None else 0
    telemetry.delete_if_configured(
        [telemetry.AGGREGATION, telemetry.PREFETCH, *(f"{telemetry.PREFETCH}_{number}" for number in range(1, shards + 1) if shards > 1)], run_id)
    say(settled.decision)
    return settled.decision


if __name__ == "__main__":
    run_component("promotion", __doc__, run, told=None, model_version="the candidate's version in the Model Registry")
