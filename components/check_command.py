"""`fedhelp check`: everything that check finds, without starting a run. Called by cli.py.

The silos' answers go to a throw-away store, so that no run id is taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelp_components.check.__main__ import check_silos, raise_all, static_problems
from fedhelp_core.config import Federation, load_federation
from fedhelp_core.errors import FedHelpError
from fedhelp_core.rounds import Run
from fedhelp_core.store import open_store


def check_and_print(path: Path, changes: Mapping[str, Any]) -> None:
    """Check the federation at `path` with `changes`.

    Raises:
        ConfigError: the file is wrong, or several things are (every problem listed).
        FedHelpError: the only problem.
    """
    federation = load_federation(path).override(**changes)
    problems = static_problems(federation)
    try:
        _check_silos_elsewhere(federation)
    except FedHelpError as e:
        problems.append(e)
    raise_all(problems)
    print(f"{path}: everything is in order; start it with: fedhelp run {path}")
    if federation.uses_public_set:
        print("Not looked at yet: whether every public image can be decoded and what the teachers answer; a run does that before it trains.")


def _check_silos_elsewhere(federation: Federation) -> None:
    with tempfile.TemporaryDirectory(prefix="fedhelp-check-") as folder:
        local = federation.override(**{"store.url": folder, "store.endpoint_url": None})
        run = Run(open_store(folder), "check")
        run.freeze(local.to_yaml())
        check_silos(local, run.store, run)
