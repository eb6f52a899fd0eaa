"""`fedhelp check`: everything that check finds, without starting a run. Called by main.py.

Silos on this machine check themselves, and their answers go to a throw-away store, so that no run id is taken. Of silos in
clusters it is tried whether their work would be taken there; their images are looked at when a run starts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelp_components.check.__main__ import ask_silos, check_silos, missing_teachers, raise_all, static_problems
from fedhelp_components.session import say
from fedhelp_core.config.federation import Federation, load_federation
from fedhelp_core.errors import FedHelpError
from fedhelp_core.protocol.run import Run
from fedhelp_core.store.open import open_store

_NAMED = 10  # silos that are listed by name


def check_and_print(path: Path, changes: Mapping[str, Any]) -> None:
    """Check the federation at `path` with `changes`.

    Raises:
        ConfigError: the file is wrong, or several things are (every problem listed).
        FedHelpError: the only problem.
    """
    federation = load_federation(path).override(**changes)
    problems = static_problems(federation) + missing_teachers(federation)
    try:
        _check_silos_here(federation)
    except FedHelpError as e:
        problems.append(e)
    elsewhere = [silo.name for silo in federation.silos_in_clusters]
    if elsewhere:
        problems += _what_clusters_refuse(federation)
    raise_all(problems)
    print(f"{path}: everything is in order; start it with: fedhelp run {path}")
    unseen = [f"the images of {', '.join(elsewhere) if len(elsewhere) <= _NAMED else f'{len(elsewhere)} silos in clusters'}"] if elsewhere else []
    if federation.uses_public_set:
        unseen += ["whether every public image can be decoded", "what the teachers answer"]
    if unseen:
        print(f"Not looked at yet: {'; '.join(unseen)}. A run does that before it trains.")


def _check_silos_here(federation: Federation) -> None:
    here = [silo.model_dump(mode="json") for silo in federation.silos_here]
    if not here:
        return
    all_here = len(here) == len(federation.silos)
    with tempfile.TemporaryDirectory(prefix="fedhelp-check-") as folder:
        fewer = {} if all_here else {"silos": here, "protocol.min_silos": 1}
        local = federation.override(**{"store.url": folder, "store.endpoint_url": None, **fewer})
        run = Run(open_store(folder), "check")
        run.freeze(local.to_yaml())
        if all_here:
            check_silos(local, run.store, run)
            return
        for silo, report in ask_silos(local, run).items():  # who is large depends on the others' counts too
            say(f"silo {silo}: {report.samples.training} training images")


def _what_clusters_refuse(federation: Federation) -> list[FedHelpError]:
    from fedhelp_dispatch.preflight import preflight  # its `kubernetes` takes seconds to import

    found = preflight(federation)
    for silo in federation.silos:
        if silo.name in found and found[silo.name] is None:
            say(f"silo {silo.name}: {silo.dispatch.how.taken}")
    return [type(problem)(f"silo {silo}: {problem}") for silo, problem in found.items() if problem is not None]
