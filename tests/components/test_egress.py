"""A real run's egress ledgers, compared with what its store holds: everything that a silo sent is in its ledger, byte for byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.tiny import ROUNDS, SILOS, TinyFederation

HUB = re.compile(
    r"runs/first/(federation\.yaml|lease\.json|kinds\.json|class_shares\.json|distillation_set\.json|soft_label_summary\.json|candidate\.json|left_out\.json"
    r"|tracked\.json|served\.json|card\.md|card\.html|promotion\.json|report\.html|rounds\.csv"
    r"|rounds/[1-9]\d*/commit\.json|rounds/([2-9]|\d\d+)/global-[0-9a-f]{16}\.safetensors)|softlabels/.+")


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds; half a minute on two idle cores
def test_every_object_that_left_a_silo_is_in_its_ledger(finished: Callable[..., TinyFederation]) -> None:
    tiny = finished()
    store = open_store(str(tiny.store))
    there = {key for key in store.list("") if key.startswith(("runs/", "softlabels/"))}
    ledgers = {silo: ledger_of(tiny, silo) for silo in SILOS}
    recorded = {entry["object"] for entries in ledgers.values() for entry in entries}
    assert sorted(key for key in there - recorded if not HUB.fullmatch(key)) == []  # nothing came from a silo past its ledger
    assert sorted(key for key in recorded if HUB.fullmatch(key)) == []
    run = tiny.run("first")
    for silo, entries in ledgers.items():
        updates = [update for round in range(1, ROUNDS + 1) if (update := run.update(silo, round))]
        dropped = {update.weights: (update.size_bytes, update.sha256) for update in updates[:-1]}  # by the hub, once the next round is closed
        for entry in entries:
            adopted = entry["object"] == run.keys.commit(0)  # all silos offer the seeded start; one is taken
            assert adopted or (entry["bytes"], entry["sha256"]) == (dropped.get(entry["object"]) or found(store, entry["object"])), entry
            assert entry["run"] == "first"
        own = [run.keys.silo_report(silo), run.keys.evaluation(silo), *(update.weights for update in updates)]
        own += [run.keys.update(silo, update.round) for update in updates]
        names = [entry["object"] for entry in entries]
        assert len(own) == 2 + 2 * ROUNDS and set(own) <= set(names)
        others = [name for name in names if name not in own]
        assert all(name.startswith(("runs/first/rounds/0/commit.json", "runs/first/rounds/1/global-")) for name in others), others


def found(store: Store, key: str) -> tuple[int, str]:
    body = store.get(key)
    return len(body), hashlib.sha256(body).hexdigest()


def ledger_of(tiny: TinyFederation, silo: str) -> list[dict[str, Any]]:
    path = tiny.folder / "state" / silo / "egress.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
