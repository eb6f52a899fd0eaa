"""The store's policy for one hospital, as docs/security.md has it: all that a silo's run needs, and nothing of others'."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fedhelp_components.soft_label_prefetch.__main__ import run as prefetch
from fedhelp_core.config.silo import load_silo
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.facts import ClassShares, Kinds, StartedFrom
from fedhelp_core.protocol.keys import ModelKeys, RunKeys
from fedhelp_core.protocol.lease import Lease, lease_keys
from fedhelp_core.protocol.model_record import append_record, fetch_norms, fetch_weights, read_records
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.silo.work import open_silo
from fedhelp_core.store.local import LocalStore
from fedhelp_core.store.open import open_store
from tests.core.protocol.records import BODY, NORMS_BODY, RECORD
from tests.tiny import SILOS, TinyFederation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROOT = "arn:aws:s3:::federation/melanoma/"
ACTIONS = {
    "get": "s3:GetObject", "fetch": "s3:GetObject", "size": "s3:GetObject", "put_new": "s3:PutObject", "put": "s3:PutObject",
    "delete": "s3:DeleteObject"}
Allowed = Callable[[str, str], bool]
Asked = set[tuple[str, str]]


@pytest.fixture(scope="module")
def allowed() -> Allowed:
    """allowed(action, object's name): whether the page's policy lets `charite` do it; `*` and `?` match as in S3, '/' too."""
    found = re.search(r"<!-- policy: charite -->\n```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    statements = json.loads(found[1])["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)

    def asked(action: str, name: str) -> bool:
        return any(
            action in statement["Action"] and any(fnmatchcase(ROOT + name, pattern) for pattern in statement["Resource"]) for statement in statements)

    return asked


class Asking(LocalStore):
    """Notes what it is asked for, by the action that S3 wants allowed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: Asked = set()

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name not in ACTIONS:
            return found
        asked: Asked = super().__getattribute__("asked")

        def noted(key: str, *more: object, **named: object) -> object:
            asked.add((ACTIONS[name], key))
            return found(key, *more, **named)  # type: ignore[operator]

        return noted


@pytest.mark.slow  # the first step of an optimizer imports 900 modules
def test_the_policy_allows_all_that_a_silos_run_asks_for(
    make_tiny: Callable[..., TinyFederation], allowed: Allowed, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny = make_tiny()
    federation, run_id = tiny.load(), "a-run"
    run = Run(open_store(str(tiny.store)), run_id)
    run.freeze(federation.to_yaml())
    store = Asking(tiny.store)
    silos = {name: open_silo(load_silo(tiny.folder / f"{name}.yaml"), store, run_id) for name in SILOS}

    for silo in silos.values():
        silo.check()
    run.settle(Kinds(dict(zip(SILOS, ("large", "small", "small"), strict=True))))
    run.settle(ClassShares(shares=[0.125] * 8))
    prefetch(store=str(tiny.store), endpoint_url="", run_id=run_id)
    with Lease(run.store, run_id, 60):
        for number in range(1, federation.algorithm.rounds + 1):
            for silo in silos.values():
                silo.train(last_round=federation.algorithm.rounds, only=number)
            close_round(
                run, number, dict.fromkeys(SILOS, 1), min_silos=len(SILOS), deadline_s=60,
                terms=Terms(max_bytes=federation.protocol.max_update_bytes))
    for silo in silos.values():
        silo.evaluate()
    for silo in SILOS:
        for key in lease_keys(run_id, silo):
            store.size(key)
    store.probe()

    asked = {(action, key.replace("brno", "charite")) for action, key in store.asked if not re.search(r"/(aachen|coimbra)[-.]", key)}
    assert {action for action, _ in asked} == {"s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
    for part in ("updates/charite-", "evaluation/charite.json", "softlabels/", "rounds/0/commit.json", "rounds/1/global-", "abort", "probe-"):
        assert any(part in key for _, key in asked), part
    assert sorted(one for one in asked if not allowed(*one)) == []


def test_the_policy_allows_a_hospital_to_read_scaffolds_control_variate_and_not_to_write_it(allowed: Allowed) -> None:
    key = RunKeys("a-run").server_state(3, "control", "0" * 64)
    assert allowed("s3:GetObject", key) and not allowed("s3:PutObject", key)


def test_the_policy_allows_a_hospital_to_read_what_became_champion(tmp_path: Path, allowed: Allowed) -> None:
    hub = LocalStore(tmp_path / "store")
    keys = ModelKeys("chest")
    append_record(hub, RECORD)
    hub.put_new(keys.weights(RECORD.weights.sha256), BODY)
    hub.put_new(keys.weights(hashlib.sha256(NORMS_BODY).hexdigest()), NORMS_BODY)
    store = Asking(tmp_path / "store")
    (record,) = read_records(store, "chest")
    fetch_weights(store, record, tmp_path / "hospital")
    fetch_norms(store, record, tmp_path / "hospital")
    for suffix in ("md", "html"):
        store.size(keys.card(RECORD.card_sha256, suffix))
    store.size(RunKeys("next").fact(StartedFrom.fact_name))
    assert {key.split("/")[2] for _, key in store.asked} == {"records", "weights", "cards", "started_from.json"}
    assert sorted(one for one in store.asked if not allowed(*one)) == []


def test_the_policy_allows_a_hospital_to_announce_what_it_adopted(allowed: Allowed) -> None:
    assert allowed("s3:PutObject", ModelKeys("chest").adoption("charite", "4"))


@pytest.mark.parametrize(("action", "name"), [
    ("s3:GetObject", "runs/r/rounds/1/updates/aachen.json"),
    ("s3:GetObject", "runs/r/rounds/1/updates/aachen-0123456789abcdef.safetensors"),
    ("s3:GetObject", "runs/r/silos/aachen.json"),
    ("s3:GetObject", "runs/r/evaluation/aachen.json"),
    ("s3:GetObject", "runs/r/report.html"),
    ("s3:GetObject", "softlabels/ledger/teacher/answers/00001-0123456789abcdef.safetensors"),
    ("s3:PutObject", "runs/r/rounds/1/updates/aachen.json"),
    ("s3:PutObject", "runs/r/rounds/1/updates/charite-nord.json"),
    ("s3:PutObject", "runs/r/rounds/1/updates/charite-nord-0123456789abcdef.safetensors"),
    ("s3:PutObject", "runs/r/rounds/1/commit.json"),
    ("s3:PutObject", "runs/r/rounds/2/global-0123456789abcdef.safetensors"),
    ("s3:PutObject", "runs/r/federation.yaml"),
    ("s3:PutObject", "runs/r/lease.json"),
    ("s3:PutObject", "runs/r/abort"),
    ("s3:GetObject", "runs/r/card.md"),
    ("s3:GetObject", "runs/r/served.json"),
    ("s3:PutObject", f"models/chest/records/{1:06d}.json"),
    ("s3:DeleteObject", f"models/chest/records/{1:06d}.json"),
    ("s3:PutObject", f"models/chest/weights/{'0' * 64}.safetensors"),
    ("s3:DeleteObject", f"models/chest/weights/{'0' * 64}.safetensors"),
    ("s3:PutObject", f"models/chest/cards/{'0' * 64}.md"),
    ("s3:PutObject", ModelKeys("chest").adoption("aachen", "4")),
    ("s3:PutObject", ModelKeys("chest").adoption("charite-nord", "4")),
    ("s3:DeleteObject", ModelKeys("chest").adoption("charite", "4")),
    ("s3:DeleteObject", "runs/r/rounds/1/updates/charite.json"),
])
def test_the_policy_keeps_a_hospital_from_what_is_others(action: str, name: str, allowed: Allowed) -> None:
    assert not allowed(action, name)
