"""The commands `fedhelp promote` and `fedhelp rollback`: a person decides, and is told what that changed. Called by main.py."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedhelp_cli.commands import quoted
from fedhelp_components.promotion.record import Decision, chain_of, tell_hospitals
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.errors import FedHelpError, NotFound
from fedhelp_core.protocol.facts import Promotion
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What a command changed."""

    model: str
    champion: str
    """Version."""
    replaced: str | None
    """The champion before; None where there was none, the same version where nothing was changed."""
    said: list[str]
    """Sentences for people."""


def promote(path: Path, version: str | None, reason: str = "") -> Decided:
    """Make `version` (None: the candidate) the champion.

    Raises:
        NotFound: no such model or version, or no candidate.
        PermanentError: the record that hospitals read was tampered with; nothing was changed.
    """
    federation = load_federation(path)
    name, registry, store = _opened(federation)
    chain_of(store, registry, name)
    done = registry.promote(name, version)
    told = _told(store, registry, name, "promoted", reason)
    if done.replaced == done.version:
        said = [f"{name}: version {done.version} is the champion already; nothing was changed", *told]
        return Decided(model=name, champion=done.version, replaced=done.replaced, said=said)
    place = f"in place of version {done.replaced}" if done.replaced else "no version was before"
    undo = [f"undo this with: fedhelp rollback {quoted(path)}"] if done.replaced else []
    return Decided(model=name, champion=done.version, replaced=done.replaced or None, said=[
        f"{name}: champion is now version {done.version}, {place}", *_kept_back(federation, registry, done.version), *told, *undo])


def rollback(path: Path, reason: str = "") -> Decided:
    """Make the champion before this one champion again. One that was killed half-way is brought to its end.

    Raises:
        NotFound: there is no champion, or none was before it.
        PermanentError: the record that hospitals read was tampered with; nothing was changed.
    """
    name, registry, store = _opened(load_federation(path))
    told, champion = chain_of(store, registry, name).champion, registry.champion(name)
    half_way = told is not None and champion is not None and registry.rolled_back(name, told.version, champion)
    version = champion if half_way else registry.rollback(name)
    return Decided(model=name, champion=str(version), replaced=champion, said=[
        f"{name}: champion is again version {version}", *_told(store, registry, name, "rolled-back", reason)])


def _opened(federation: Federation) -> tuple[str, Registry, Store]:
    store = open_store(federation.store.url, endpoint_url=federation.store.endpoint_url)
    return federation.registered_name, Registry.for_federation(federation), store


def _told(store: Store, registry: Registry, name: str, kind: Literal["promoted", "rolled-back"], reason: str) -> list[str]:
    """What hospitals now read, where that is new; why they cannot be told, where nothing is known of the version's run."""
    try:
        told = tell_hospitals(store, registry, name, Decision(kind=kind, decided_by=_user(), reason=reason or "by hand"))
    except NotFound as e:
        return [f"hospitals were not told, and go on with what they read last: {e}"]
    return [f"hospitals read it as record {told.record.number} of {name}"] if told.new else []


def _user() -> str:
    """The user's name as it may stand in a record; pods may have a number alone."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    return re.sub(r"[^ -~]", "?", name)[:100]


def _kept_back(federation: Federation, registry: Registry, version: str) -> list[str]:
    """That the gate had refused `version`, and why; empty where it had not, or where nothing is known of it any more."""
    try:
        run_id = registry.run_of(federation.registered_name, version)
        if not run_id:
            return []
        fact = Run(open_store(federation.store.url, endpoint_url=federation.store.endpoint_url), run_id).fact(Promotion)
    except FedHelpError:  # the promotion is done; what went before is only told
        return []
    return [f"the gate had kept it back: {fact.reasons or fact.decision}"] if fact.outcome == "kept" else []
