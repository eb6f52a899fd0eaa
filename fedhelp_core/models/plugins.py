"""Networks that an image brings itself: entry points of group `fedhelp.networks`. Called by build.

A federation.yaml names one that is installed; nothing else of it is looked up or imported (docs/models.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import nn

from fedhelp_core.config.model import ModelConfig
from fedhelp_core.errors import ConfigError
from fedhelp_core.models.initialisation import seeded

GROUP = "fedhelp.networks"


def plugged(model: ModelConfig, *, outputs: int, channels: int, sides: Sequence[int], generator: torch.Generator | None) -> nn.Module:
    """What the entry point makes: `function(channels=, outputs=, sides=, **arguments)`, its layers seeded from `generator`.

    Raises:
        ConfigError: it is not installed here, or its code raises.
    """
    point = _installed(str(model.plugin))
    try:
        with seeded(generator):
            found = point.load()(channels=channels, outputs=outputs, sides=tuple(sides), **model.arguments)
    except Exception as e:  # of a code that is not ours
        raise ConfigError(f"cannot be built by {point.value}: {type(e).__name__}: {str(e)[:200]}") from e
    if not isinstance(found, nn.Module):
        raise ConfigError(f"is to be a torch.nn.Module, and {point.value} makes a {type(found).__name__}")
    return found


def _installed(name: str) -> EntryPoint:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        raise ConfigError(
            f"is not installed here (entry points of group {GROUP}: {', '.join(sorted(known)) or 'none'}); give every silo the image that has it"
            " (docs/models.md)")
    return known[name]
