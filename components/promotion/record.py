"""What became champion, written where hospitals read it: the store's record of the model (fedhelp_core/protocol/model_record.py).

MLflow stays the hub's register, and the record follows it. So whoever was killed between the two does the same again: a champion that the
newest record has already is not written twice. Called by promotion and by the commands `fedhelp promote` and `fedhelp rollback`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedhelp_components.evaluation.for_hospitals import evaluations_of, hospital_scores, lineage_of, means_of
from fedhelp_components.images import VERSION
from fedhelp_core.config.federation import federation_in
from fedhelp_core.data.examples import preparation
from fedhelp_core.disk import digest_of
from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.protocol.documents import StoredWeights, dump, said, utc_now
from fedhelp_core.protocol.facts import ClassShares, Served
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.model_record import Chain, ModelRecord, append_record, keep_weights, read_chain
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.tracking.registry import Registry

_MOST_CARD = 16 * 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Why a version is champion from now on."""

    kind: Literal["promoted", "rolled-back"]
    decided_by: str
    reason: str


@dataclass(frozen=True)
class Told:
    """What hospitals read now, and whether this call wrote it."""

    record: ModelRecord
    new: bool


def tell_hospitals(store: Store, registry: Registry, name: str, decision: Decision) -> Told:
    """Have the newest record of model `name` be of its champion, which must be there; does nothing where it is.

    Raises:
        NotFound: nothing is known any more of the run that trained it.
        PermanentError: the record was tampered with.
        WeightsError: the run's final model was.
    """
    while True:
        version = registry.champion(name)
        run_id = registry.run_of(name, version) if version is not None else None
        if version is None or not run_id:
            raise NotFound(f"model {name!r} version {version}: no tag fedhelp.run, so it was not registered by FedHelp's evaluation")
        chain = chain_of(store, registry, name)
        if (newest := chain.champion) is not None and (newest.version, newest.run) == (version, run_id):
            registry.remember_record(name, *chain.newest)
            return Told(newest, new=False)
        number, sha256 = chain.newest
        known = next((record for record in reversed(chain.records) if (record.version, record.run) == (version, run_id)), None)
        record = replace(
            known or _of_run(store, run_id, name, version), number=number + 1, previous_sha256=sha256, kind=decision.kind, time=utc_now(),
            decided_by=decision.decided_by, reason=said(decision.reason))
        if append_record(store, record):
            registry.remember_record(name, record.number, digest_of(dump(record))[0])
            return Told(record, new=True)


def chain_of(store: Store, registry: Registry, name: str) -> Chain:
    """The record of `name`, which goes on from the newest entry that MLflow knows of. Read before anything is decided.

    Raises:
        PermanentError: it was tampered with, so nothing can be added to it.
    """
    chain = read_chain(store, name)
    chain.require_seen(*registry.known_record(name))
    return chain


def _of_run(store: Store, run_id: str, name: str, version: str) -> ModelRecord:
    """The first record of a version, but for its place in the chain and the decision; its weights and card lie in the store."""
    run = Run(store, run_id)
    federation = federation_in(run.federation_yaml(), source=f"run {run_id}'s federation.yaml")
    final = run.commit(federation.algorithm.rounds)
    if final is None:
        raise NotFound(f"run {run_id!r}: its last commit is not in {store.url} any more")
    served = run.fact(Served) if run.has_fact(Served) else None
    norms = served.norms if served is not None else None
    weights = run.global_file(final, max_bytes=federation.protocol.max_update_bytes)
    _keep_card(store, run, name, served)
    return ModelRecord(
        number=1, previous_sha256="", name=name, kind="promoted", version=version, run=run_id, time="", decided_by="", reason="",
        task=federation.task, preprocessing=preparation(federation.task), algorithm=federation.algorithm, evaluation=federation.evaluation,
        weights=_kept(
            store, name, weights, StoredWeights(sha256=final.global_sha256, size_bytes=weights.stat().st_size, spec=final.spec)),
        statistics=served.statistics if served is not None else "averaged" if federation.algorithm.normalisation == "shared" else "none",
        norms=_kept(store, name, store.fetch(run.keys.norms(norms.sha256), norms.size_bytes), norms) if norms is not None else None,
        class_shares=run.fact(ClassShares).shares if run.has_fact(ClassShares) else [],
        headline=federation.task.headline.name, scores=means_of(run, federation),
        hospitals=hospital_scores(run, federation, evaluations_of(run, federation, final)),
        lineage=lineage_of(run, federation, final, served.software if served is not None else {"fedhelp": VERSION}),
        card_sha256=served.card_sha256 if served is not None else "", card_html_sha256=served.card_html_sha256 if served is not None else "")


def _kept(store: Store, name: str, source: Path, stored: StoredWeights) -> StoredWeights:
    """The file `source` in the store under the model's name, once it is what `stored` says."""
    try:
        keep_weights(store, name, source, stored)
    finally:
        store.release(source)
    return stored


def _keep_card(store: Store, run: Run, name: str, served: Served | None) -> None:
    for suffix, sha256 in (("md", served.card_sha256), ("html", served.card_html_sha256)) if served is not None else ():
        body = store.get(run.keys.card(suffix), _MOST_CARD)
        if digest_of(body)[0] != sha256:
            raise PermanentError(f"{run.keys.card(suffix)}: sha256 {sha256[:12]}... expected; the card was altered")
        store.put_new(ModelKeys(name).card(sha256, suffix), body)
