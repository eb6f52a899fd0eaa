"""MLflow's seconds of imports, and those of the first export of a model, are paid once, outside of the tests' own time."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    import mlflow.pytorch  # noqa: F401
    import torch

    torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 1),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
