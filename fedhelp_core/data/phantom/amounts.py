"""How much of each sign one image shows, drawn around its class's. Pure; numpy only. Called by the drawings of single images."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any, TypeVar

import numpy as np

_Signs = TypeVar("_Signs")


def drawn_around(mean: _Signs, spread: float, rng: np.random.Generator) -> _Signs:
    """A dataclass of amounts like `mean`, each moved by chance (standard deviation `spread`) and kept in [0, 1]."""
    either: Any = mean
    return type(mean)(**{
        f.name: float(np.clip(value + rng.normal(0, spread), 0, 1)) for f, value in zip(fields(either), astuple(either), strict=True)})
