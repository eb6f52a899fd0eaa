"""A bucket whose server enforces policies: every hospital has a key pair of its own with the policy of docs/security.md, and a run ends with it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedhelp_components.soft_label_prefetch.__main__ import run as prefetch
from fedhelp_core.config.silo import load_silo
from fedhelp_core.errors import AccessDenied
from fedhelp_core.protocol.closing import close_round
from fedhelp_core.protocol.facts import ClassShares, Kinds
from fedhelp_core.protocol.keys import ModelKeys
from fedhelp_core.protocol.lease import Lease, lease_keys
from fedhelp_core.protocol.model_record import append_record, fetch_weights, read_records
from fedhelp_core.protocol.run import Run
from fedhelp_core.protocol.update_check import Terms
from fedhelp_core.silo.work import open_silo
from fedhelp_core.store import s3 as store_s3
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.cluster.build import REPOSITORY
from tests.cluster.fixtures import built_or_skipped
from tests.cluster.versitygw import Gateway
from tests.conftest import drawn, make_tiny
from tests.core.protocol.records import BODY, RECORD
from tests.core.store.test_store import TestEveryStore
from tests.tiny import SILOS, TinyFederation

__all__ = ["TestEveryStore", "drawn", "make_tiny"]  # the conformance suite runs on this server too
pytestmark = [pytest.mark.cluster, pytest.mark.slow]
BUCKET = "federation"
URL = f"s3://{BUCKET}/melanoma"
RUN = "a-run"
_prefixes = itertools.count()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Every silo's key pair has the page's policy, with its own name in it."""
    built_or_skipped("versitygw")
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- policy: charite -->\n```json\n(.*?)```", page, re.DOTALL)
    assert found
    with Gateway(tmp_path_factory.mktemp("s3"), BUCKET) as gateway:
        for silo in SILOS:
            gateway.add_user(silo)
        gateway.allow({silo: json.loads(found[1].replace("charite", silo))["Statement"] for silo in SILOS})
        yield gateway


@contextmanager
def as_user(gateway: Gateway, **user: str) -> Iterator[None]:
    """Credentials in the environment, where S3 stores look for them at their first request."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, value in gateway.credentials(**user).items():
            patch.setenv(name, value)
        yield


def store_of(gateway: Gateway, silo: str) -> Store:
    """The federation's store by a silo's key pair."""
    with as_user(gateway, user=silo):
        store = open_store(URL, endpoint_url=gateway.endpoint)
        store.list("runs/")
    return store


@pytest.fixture
def open_again(gateway: Gateway) -> Iterator[Callable[[], Store]]:
    """The bucket's owner, at an empty prefix."""
    url = f"s3://{BUCKET}/{next(_prefixes)}"
    with as_user(gateway):
        yield lambda: open_store(url, endpoint_url=gateway.endpoint)


@pytest.fixture
def store(open_again: Callable[[], Store]) -> Store:
    return open_again()


@pytest.fixture
def hub(gateway: Gateway) -> Iterator[Store]:
    """The owner's store; the environment stays the owner's while the test runs."""
    with as_user(gateway):
        yield open_store(URL, endpoint_url=gateway.endpoint)


def test_a_run_ends_with_a_key_pair_and_a_policy_for_each_hospital(
    gateway: Gateway, hub: Store, make_tiny: Callable[..., TinyFederation], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store_s3, "_WHOLE_BYTES", 64 * 2**10)  # so that updates go up in parts, as large ones do
    tiny = make_tiny(store__url=URL, store__endpoint_url=gateway.endpoint)
    federation = tiny.load()
    run = Run(hub, RUN)
    run.freeze(federation.to_yaml())
    stores = {silo: store_of(gateway, silo) for silo in SILOS}
    silos = {silo: open_silo(load_silo(tiny.folder / f"{silo}.yaml"), stores[silo], RUN) for silo in SILOS}
    for silo in silos.values():
        silo.check()
    Run(hub, RUN).settle(Kinds(dict(zip(SILOS, ("large", "small", "small"), strict=True))))
    Run(hub, RUN).settle(ClassShares(shares=[0.125] * 8))
    prefetch(store=URL, endpoint_url=gateway.endpoint, run_id=RUN)
    with Lease(hub, RUN, 60):
        for number in range(1, federation.algorithm.rounds + 1):
            for silo in silos.values():
                silo.train(last_round=federation.algorithm.rounds, only=number)
            close_round(
                run, number, dict.fromkeys(SILOS, 1), min_silos=len(SILOS), deadline_s=60,
                terms=Terms(max_bytes=federation.protocol.max_update_bytes))
        for name in SILOS:
            assert any(stores[name].size(key) for key in lease_keys(RUN, name)), "a worker sees whether its hub lives"
    for silo in silos.values():
        silo.evaluate()
    for store in stores.values():
        store.probe()  # what `helm test` does
    assert all(run.evaluation(silo) is not None for silo in SILOS)


def test_a_hospital_reads_the_record_of_models_and_its_weights(gateway: Gateway, hub: Store, tmp_path: Path) -> None:
    append_record(hub, RECORD)
    hub.put_new(ModelKeys("chest").weights(RECORD.weights.sha256), BODY)
    store = store_of(gateway, "brno")
    (record,) = read_records(store, "chest")
    assert record == RECORD
    assert fetch_weights(store, record, tmp_path).read_bytes() == BODY
    for key in (ModelKeys("chest").record(1), ModelKeys("chest").record(2), ModelKeys("chest").weights(RECORD.weights.sha256)):
        with pytest.raises(AccessDenied):
            store.put(key, b"forged")
    assert read_records(hub, "chest") == [RECORD]


@pytest.mark.parametrize(("action", "name"), [
    ("get", "rounds/1/updates/aachen.json"),
    ("get", "silos/aachen.json"),
    ("size", "evaluation/aachen.json"),
    ("get", "report.html"),
    ("put", "rounds/1/updates/aachen.json"),
    ("put", "rounds/1/updates/brno-nord.json"),
    ("put", "rounds/1/updates/brno-nord-0123456789abcdef.safetensors"),
    ("put", "rounds/1/commit.json"),
    ("put", "rounds/2/global-0123456789abcdef.safetensors"),
    ("put", "federation.yaml"),
    ("put", "lease.json"),
    ("put", "abort"),
    ("delete", "rounds/1/updates/brno.json"),
])
def test_the_server_keeps_a_hospital_from_what_is_others(gateway: Gateway, hub: Store, action: str, name: str) -> None:
    key = f"runs/another/{name}"
    hub.put(key, b"there")
    store: Any = store_of(gateway, "brno")
    with pytest.raises(AccessDenied):
        getattr(store, action)(key, *([b"forged"] if action == "put" else []))
    assert hub.get(key) == b"there"
