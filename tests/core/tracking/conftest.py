"""MLflow's seconds of imports are paid once, outside of the tests' own time."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    import mlflow.pytorch  # noqa: F401
