"""Which of its models a silo deploys. Called by evaluation for its summaries and by candidate for the gate's scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deployed_model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scores and confusion, of a silo's evaluation, of the model that it deploys."""
    models: Mapping[str, Mapping[str, Any]] = document["models"]
    return models[deployed_name(document)]


def deployed_name(document: Mapping[str, Any]) -> str:
    """'large' or 'proxy': what the silo chose (inference.deployed_models); from a worker that does not say, its large one if it has one."""
    models = document["models"]
    chosen = document.get("deployed")
    return chosen if isinstance(chosen, str) and chosen in models else "large" if "large" in models else "proxy"
