"""`fedhelp jobs`: what works, waits, failed or is left over in the silos' clusters. Called by main.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fedhelp_core.config.federation import load_federation
from fedhelp_core.errors import ConfigError, FedHelpError
from fedhelp_core.protocol.lease import last_sign
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.cluster import Cluster
from fedhelp_dispatch.job import ACTION_LABEL, ROUND_LABEL, RUN_LABEL, SILO_LABEL
from fedhelp_dispatch.kubernetes import JobCarrier, look_at, pods_of
from fedhelp_dispatch.manifestwork import ManifestWorkCarrier, job_reported
from fedhelp_dispatch.reading import failure, read_job, why_waiting
from fedhelp_dispatch.refusals import ApiRefusal, explained
from fedhelp_dispatch.watch import Collection


@dataclass(frozen=True)
class Place:
    """Where Jobs are looked for."""

    context: str | None
    namespace: str | None
    """None: in all."""
    kind: type[JobCarrier] | type[ManifestWorkCarrier] = JobCarrier


@dataclass(frozen=True)
class Listed:
    """One row."""

    run: str
    silo: str
    namespace: str
    action: str
    round: str
    state: str
    since: str
    reason: str
    orphan: str
    """'yes', 'no', '' for what has ended, '?' where its store cannot be read from here."""


def list_and_print(federation: Path | None, *, run_id: str | None, context: str | None, namespaces: Sequence[str]) -> None:
    """The table.

    Raises:
        ConfigError: the options do not fit each other, or no silo works in a cluster.
        AccessDenied: the account may not list Jobs there.
    """
    rows = [row for place in places(federation, context, namespaces) for row in jobs_at(place, run_id)]
    if not rows:
        print("no Jobs" + (f" of run {run_id}" if run_id else ""))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "silo", "namespace", "action", "round", "state", "since", "orphan", "reason"):
        table.add_column(heading, overflow="fold")
    for row in sorted(rows, key=lambda r: (r.run, r.silo, r.since)):
        table.add_row(row.run, row.silo, row.namespace, row.action, row.round, row.state, row.since, row.orphan, row.reason)
    console = Console()
    Console(width=None if console.is_terminal else 240, markup=False, highlight=False).print(table)


def places(federation: Path | None, context: str | None, namespaces: Sequence[str]) -> list[Place]:
    """Where to look."""
    if federation is None:
        return [Place(context, namespace) for namespace in namespaces] or [Place(context, None)]
    if namespaces:
        raise ConfigError("--namespace: the FEDERATION names its silos' namespaces already; leave one of them out")
    found = [
        Place(silo.dispatch.context, silo.namespace) if silo.dispatch.kind == "kubernetes"
        else Place(silo.dispatch.context, silo.dispatch.cluster, ManifestWorkCarrier)
        for silo in load_federation(federation).silos_in_clusters if context in (None, silo.dispatch.context)]
    if not found:
        raise ConfigError(f"{federation}: no silo works in {f'context {context!r}' if context else 'a cluster'}; there are no Jobs to list")
    return list(dict.fromkeys(found))


def jobs_at(place: Place, run_id: str | None) -> Iterator[Listed]:
    """The rows of one place.

    Raises:
        AccessDenied: the account may not list Jobs there.
        ClusterUnavailable: the API server was not reached.
    """
    cluster = Cluster(place.context)
    collection = Collection(place.kind.collection_group, place.kind.resource, f"{RUN_LABEL}={run_id}" if run_id else RUN_LABEL)
    try:
        found = cluster.call("GET", collection.path(place.namespace), query={"labelSelector": collection.selector})
        for item in found.get("items") or []:
            yield _row(cluster, item, place)
    except ApiRefusal as e:
        raise explained(e, doing=f"list {place.kind.resource}", namespace=place.namespace or "all namespaces") from e


def _row(cluster: Cluster, found: dict[str, Any], place: Place) -> Listed:
    wrapped = place.kind is ManifestWorkCarrier
    job = job_reported(found) if wrapped else found
    reading = read_job(job)
    if reading.phase == "done":
        reason = ""
    elif reading.phase == "failed":
        reason = failure(job, [] if wrapped else pods_of(cluster, job), []).reason
    else:
        waiting = why_waiting(job) if wrapped else look_at(cluster, job).waiting
        reason = waiting.reason if waiting is not None else ""
    labels = found["metadata"]["labels"]
    carried = found["spec"]["workload"]["manifests"][0] if wrapped else found
    return Listed(
        run=labels[RUN_LABEL], silo=labels.get(SILO_LABEL, "?"), namespace=found["metadata"]["namespace"], action=labels.get(ACTION_LABEL, "?"),
        round=labels.get(ROUND_LABEL, "?"), state=reading.phase, since=reading.since, reason=reason,
        orphan="" if reading.phase in ("done", "failed") else _orphan(labels[RUN_LABEL], labels.get(SILO_LABEL, ""), carried))


def _orphan(run_id: str, silo: str, job: dict[str, Any]) -> str:
    """Whether the run's hub has been silent for longer than the lease, by the store that the Job itself names."""
    arguments = job["spec"]["template"]["spec"]["containers"][0].get("args") or []
    options = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    try:
        sign = last_sign(open_store(options.get("--store", ""), endpoint_url=options.get("--endpoint-url")), run_id, silo)
    except FedHelpError:
        return "?"
    return "yes" if sign is None or sign.over(datetime.now(UTC)) else "no"
