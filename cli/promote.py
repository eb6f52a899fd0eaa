"""The commands `fedhelp promote` and `fedhelp rollback`: a person decides, and is told what that changed. Called by main.py."""

from __future__ import annotations

from pathlib import Path

from fedhelp_cli.commands import quoted
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.errors import FedHelpError
from fedhelp_core.protocol.facts import Promotion
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.registry import Registry


def promote(path: Path, version: str | None) -> str:
    """Make `version` (None: the candidate) the champion; what that changed, for people.

    Raises:
        NotFound: no such model or version, or no candidate.
    """
    federation = load_federation(path)
    name, registry = federation.registered_name, Registry.for_federation(federation)
    done = registry.promote(name, version)
    if done.replaced == done.version:
        return f"{name}: version {done.version} is the champion already; nothing was changed"
    place = f"in place of version {done.replaced}" if done.replaced else "no version was before"
    undo = [f"undo this with: fedhelp rollback {quoted(path)}"] if done.replaced else []
    return "\n".join([f"{name}: champion is now version {done.version}, {place}", *_kept_back(federation, registry, done.version), *undo])


def rollback(path: Path) -> str:
    """Make the champion before this one champion again; which one that is, for people.

    Raises:
        NotFound: there is no champion, or none was before it.
    """
    federation = load_federation(path)
    name = federation.registered_name
    return f"{name}: champion is again version {Registry.for_federation(federation).rollback(name)}"


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
