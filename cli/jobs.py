"""`fedhelp jobs`: what works, waits, failed or is left over in the silos' clusters. Called by main.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedhelp_cli.commands import print_json
from fedhelp_core.config.federation import load_federation
from fedhelp_core.errors import ConfigError, FedHelpError
from fedhelp_core.protocol.lease import last_sign
from fedhelp_core.store.open import open_store
from fedhelp_dispatch.carrier import Carrier, carrier_of
from fedhelp_dispatch.cluster import Cluster, Clusters
from fedhelp_dispatch.job import ACTION_LABEL, ROUND_LABEL, RUN_LABEL, SILO_LABEL, Object
from fedhelp_dispatch.refusals import ApiRefusal, refusal_error

_ENDED = ("done", "failed")


@dataclass(frozen=True)
class Place:
    """Where Jobs are looked for."""

    context: str | None
    namespace: str | None
    """None: in all."""
    kind: str = "kubernetes"
    """Of dispatch."""


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


def list_and_print(federation: Path | None, *, run_id: str | None, context: str | None, namespaces: Sequence[str], as_json: bool = False) -> None:
    """The table, or its rows as JSON.

    Raises:
        ConfigError: the options do not fit each other, or no silo works in a cluster.
        AccessDenied: the account may not list Jobs there.
    """
    rows = sorted(asyncio.run(jobs_at(places(federation, context, namespaces), run_id)), key=lambda row: (row.run, row.silo, row.since))
    if as_json:
        print_json({"jobs": [asdict(row) for row in rows]})
        return
    if not rows:
        print("no Jobs" + (f" of run {run_id}" if run_id else ""))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "silo", "namespace", "action", "round", "state", "since", "orphan", "reason"):
        table.add_column(heading, overflow="fold")
    for row in rows:
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
        Place(silo.dispatch.context, carrier_of(silo.dispatch.kind).namespace(silo), silo.dispatch.kind)
        for silo in load_federation(federation).silos_in_clusters if context in (None, silo.dispatch.context)]
    if not found:
        raise ConfigError(f"{federation}: no silo works in {f'context {context!r}' if context else 'a cluster'}; there are no Jobs to list")
    return list(dict.fromkeys(found))


async def jobs_at(places: Sequence[Place], run_id: str | None) -> list[Listed]:
    """The rows of all places.

    Raises:
        AccessDenied: the account may not list Jobs there.
        ClusterUnavailable: the API server was not reached.
    """
    async with Clusters() as clusters:
        return [row for place in places for row in await _rows(clusters.of(place.context), place, run_id)]


async def _rows(cluster: Cluster, place: Place, run_id: str | None) -> list[Listed]:
    carrier = carrier_of(place.kind)
    query = {"labelSelector": f"{RUN_LABEL}={run_id}" if run_id else RUN_LABEL}
    try:
        found = await cluster.call("GET", carrier.path(place.namespace), query=query)
        return await asyncio.gather(*(_row(cluster, carrier, item) for item in found.get("items") or []))
    except ApiRefusal as e:
        raise refusal_error(e, doing=f"list {carrier.resource}", namespace=place.namespace or "all namespaces") from e


async def _row(cluster: Cluster, carrier: Carrier, found: Object) -> Listed:
    reading = carrier.read(found)
    if reading.phase == "failed":
        reason = (await carrier.conclude(cluster, found, None)).reason
    else:
        waiting = None if reading.phase == "done" else (await carrier.look(cluster, found)).waiting
        reason = "" if waiting is None else waiting.reason
    labels = found["metadata"]["labels"]
    return Listed(
        run=labels[RUN_LABEL], silo=labels.get(SILO_LABEL, "?"), namespace=found["metadata"]["namespace"], action=labels.get(ACTION_LABEL, "?"),
        round=labels.get(ROUND_LABEL, "?"), state=reading.phase, since=reading.since, reason=reason,
        orphan="" if reading.phase in _ENDED else _orphan(labels[RUN_LABEL], labels.get(SILO_LABEL, ""), carrier.job(found)))


def _orphan(run_id: str, silo: str, job: Object) -> str:
    """Whether the run's hub has been silent for longer than the lease, by the store that the Job itself names."""
    arguments = job["spec"]["template"]["spec"]["containers"][0].get("args") or []
    options = dict(zip(arguments[1::2], arguments[2::2], strict=False))
    try:
        sign = last_sign(open_store(options.get("--store", ""), endpoint_url=options.get("--endpoint-url")), run_id, silo)
    except FedHelpError:
        return "?"
    return "yes" if sign is None or sign.over(datetime.now(UTC)) else "no"
