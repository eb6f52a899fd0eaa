"""Which of its models a silo deploys. Called by evaluation for its summaries and by candidate for the gate's scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deployed_model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scores and confusion, of a silo's evaluation, of the model that it deploys: its large one where it has one, else the proxy."""
    models: Mapping[str, Mapping[str, Any]] = document["models"]
    return models["large"] if "large" in models else models["proxy"]
