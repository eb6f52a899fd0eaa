"""Small write-once facts of a run that later steps need: which silos are large, which distillation set it uses.

Written by check and soft_label_prefetch, read by silos and the hub. A second writer adopts the first's fact.
"""

from __future__ import annotations

import json
from typing import Any

from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.protocol.keys import RunKeys
from fedhelp_core.store.base import Store

_MAX_BYTES = 2**20


def write_fact(store: Store, run_id: str, name: str, fact: dict[str, Any]) -> dict[str, Any]:
    """Make `fact` the run's fact `name`, or return the one that is there already."""
    if store.put_new(RunKeys(run_id).fact(name), json.dumps(fact, sort_keys=True).encode()):
        return fact
    return read_fact(store, run_id, name)


def read_fact(store: Store, run_id: str, name: str) -> dict[str, Any]:
    """The run's fact `name`.

    Raises:
        NotFound: the step that writes it has not finished.
        PermanentError: the object is not JSON of a mapping.
    """
    try:
        fact = json.loads(store.get(RunKeys(run_id).fact(name), _MAX_BYTES))
    except NotFound as e:
        raise NotFound(f"run {run_id!r} has no {name} yet; run the step before this one first (check, then soft_label_prefetch)") from e
    except ValueError as e:
        raise PermanentError(f"run {run_id!r}: {RunKeys(run_id).fact(name)} is not JSON ({e}); the store was tampered with or is damaged") from e
    if not isinstance(fact, dict):
        raise PermanentError(f"run {run_id!r}: {RunKeys(run_id).fact(name)} should hold a mapping, got {type(fact).__name__}")
    return fact
