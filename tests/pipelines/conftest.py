"""A stand-in of Kubeflow Pipelines (kubeflow.py) as a fixture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.kubeflow import Kubeflow


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    """Its seconds of imports are paid once, outside of the tests' own time."""
    import fedhelp_pipelines.compile
    import fedhelp_pipelines.submit  # noqa: F401


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps settings there
    server = Kubeflow()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
