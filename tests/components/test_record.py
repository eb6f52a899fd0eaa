"""What hospitals read of a model after promotion and rollback, by gate and by hand, and when any of it is killed half-way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhelp_cli.promote import promote, rollback
from fedhelp_components.promotion import record as telling
from fedhelp_components.promotion.__main__ import run as decide
from fedhelp_core.config.silo import load_silo
from fedhelp_core.data.examples import preparation
from fedhelp_core.errors import NotFound, PermanentError
from fedhelp_core.protocol.facts import Candidate, Promotion
from fedhelp_core.protocol.model_record import fetch_weights, read_chain, read_records
from fedhelp_core.store.open import open_store
from fedhelp_core.tracking.registry import Registry
from fedhelp_core.weights.file import read_weights
from tests.tiny import SILOS, Processes, TinyFederation, succeeded

pytestmark = pytest.mark.slow
_numbers = itertools.count()


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyFederation:
    """Two runs, of which nothing has been promoted; aachen agreed to be named."""
    from tests import tiny as tiny_module

    tiny = TinyFederation.written(tmp_path_factory.mktemp("trained"), drawn, promotion__mode="manual")
    tiny.write_silo("aachen", named=True)
    with tiny_module.processes() as processes:
        succeeded(processes.fedhelp("run", tiny.path, "--run-id", "first"))
        succeeded(processes.fedhelp("run", tiny.path, "--run-id", "second", "--set", "runtime.seed=6"))
    return tiny


@pytest.fixture
def tiny(trained: TinyFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyFederation]:
    """The two runs, under a registered name that nothing has been promoted under."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield trained


def test_placeholder(trained: TinyFederation) -> None:
    print(promote(trained.path, "1"))
    store = open_store(str(trained.store))
    (record,) = read_records(store, "tiny")
    print(record)
    print(promote(trained.path, "2"))
    print(rollback(trained.path))
    print([(r.number, r.kind, r.version) for r in read_records(store, "tiny")])
    assert 0
