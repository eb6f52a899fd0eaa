"""MONAI's networks of the list (registry/networks.json) as modules. Called by build, and by docs/networks.py, which makes the list.

Their layers start as their authors wrote it, from PyTorch's own generator: seeded here from the one that is passed in, and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedhelp_core.errors import ConfigError
from fedhelp_core.lean_monai import network_called
from fedhelp_core.models.initialisation import seeded
from fedhelp_core.registry.networks import Given, MonaiNetwork


def monai_network(
    network: MonaiNetwork, arguments: Mapping[str, Any], *, outputs: int, channels: int, sides: Sequence[int], generator: torch.Generator | None,
) -> nn.Module:
    """`network` for images of `channels` and `sides`, float32 on the CPU, with `outputs` a head.

    Raises:
        ConfigError: its authors' code refuses the arguments.
    """
    maker = network_called(network.module, network.name)
    return made(maker, network.given, {**network.fixed, **arguments}, outputs=outputs, channels=channels, sides=sides, generator=generator)


def made(
    maker: Callable[..., nn.Module], given: Mapping[str, Given], arguments: Mapping[str, Any], *, outputs: int, channels: int, sides: Sequence[int],
    generator: torch.Generator | None,
) -> nn.Module:
    """`maker`'s network; see `monai_network`."""
    of_task: Mapping[Given, Any] = {
        "dimensions": len(sides), "channels": channels, "outputs": outputs, "sides": tuple(sides), "shape": (channels, *sides)}
    try:
        with seeded(generator):
            return maker(**{name: of_task[what] for name, what in given.items()}, **{name: _as_authors_have_it(at) for name, at in arguments.items()})
    except Exception as e:  # whatever its authors raise
        said = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise ConfigError(f"cannot be built with {dict(arguments)}: {said}") from e


def _as_authors_have_it(value: Any) -> Any:
    """YAML's lists as tuples: `["PRELU", {"init": 0.2}]` is a pair to MONAI."""
    return tuple(map(_as_authors_have_it, value)) if isinstance(value, list) else value
