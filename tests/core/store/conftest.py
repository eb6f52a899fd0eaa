"""Every kind of store, each also with a silo's egress ledger before it: one conformance suite runs over all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedhelp_core.silo.egress import LedgeredStore
from fedhelp_core.store.base import Store
from tests.core.conftest import new_store


@pytest.fixture(params=["local", "s3", "ledgered local", "ledgered s3"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens the same, at first empty, store of each kind; every call gives a new object, as another process would have."""
    ledgered, _, kind = request.param.rpartition(" ")
    opened = new_store(kind, request, tmp_path)
    return (lambda: LedgeredStore(opened(), tmp_path / "egress.jsonl", "run-1")) if ledgered else opened
