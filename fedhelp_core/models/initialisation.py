"""Seeded initialisation of any registered model, from a generator that is passed in. Called by the model registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_PRELU_SLOPE = 0.25  # PyTorch's own default


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """He initialisation of convolutions, Xavier-uniform of linear layers, ones and zeros of batch norms, in place.

    Raises:
        TypeError: a layer has parameters that nothing here initialises.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            # a transposed kernel lies the other way round
            nn.init.kaiming_normal_(layer.weight, mode="fan_in" if layer.transposed else "fan_out", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()
        elif isinstance(layer, nn.PReLU):
            nn.init.constant_(layer.weight, _PRELU_SLOPE)
        elif any(True for _ in layer.parameters(recurse=False)):
            raise TypeError(f"{type(layer).__name__} has parameters, but models/initialisation.py does not know how to initialise them")


@contextmanager
def seeded(generator: torch.Generator | None, device: torch.device | None = None) -> Iterator[None]:
    """What draws from PyTorch's own generators inside, such as dropout or a layer's own initialisation, draws by `generator`; None: anything.

    Those of the CPU and of `device` are as before afterwards.
    """
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        if generator is not None:
            torch.manual_seed(int(torch.randint(0, 2**62, (), generator=generator)))
        yield
