"""Stores and servers of the soft labels' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhelp_core.softlabels import pacing
from fedhelp_core.store.base import Store
from fedhelp_core.store.open import open_store
from tests.core.softlabels.inference_server import InferenceServer


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "objects"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = InferenceServer()
    yield server
    server.close()
