"""The model registry: names that `proxy_model` and `large_model` may take, and how each is built.

Called by the local updates, the simulation and the evaluation. A model is an `nn.Module` with a `backbone`
(images -> features (B, F)) and a `head` (features -> logits), so that a public head can share the backbone (Eq 2).
Register another with `register("name", factory)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedhelp_core.errors import ConfigError
from fedhelp_core.models import resnet

Factory = Callable[[int, int], nn.Module]
_REGISTRY: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Make `name` available; `factory(outputs, in_channels)` returns the module, its parameters in any state."""
    _REGISTRY[name] = factory


def _cifar_resnet(depth: int) -> Factory:
    return lambda outputs, in_channels: resnet.Classifier(depth, outputs, in_channels)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", _cifar_resnet(_depth))


def known_models() -> tuple[str, ...]:
    """Names in the registry, in order of registration."""
    return tuple(_REGISTRY)


def build_model(name: str, *, outputs: int, in_channels: int = 3, generator: torch.Generator | None = None) -> nn.Module:
    """The model `name`, float32 on the CPU; initialised from `generator`, or left uninitialised for loading where it is None.

    Raises:
        ConfigError: `name` is not in the registry.
    """
    if name not in _REGISTRY:
        raise ConfigError(f"model {name!r} is not registered; known models: {', '.join(_REGISTRY)}")
    with torch.device("meta"):
        model = _REGISTRY[name](outputs, in_channels)
    model = model.to_empty(device="cpu")
    if generator is not None:
        resnet.initialise(model, generator)
    return model


def build_public_head(model: nn.Module, *, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """g of Eq 2: a linear head on `model`'s features with `outputs` = C_pub, initialised like the model's own head."""
    own_head = model.head
    if not isinstance(own_head, nn.Linear):
        raise ConfigError("a proxy model needs a linear `head` for the public head to be made like it")
    features = own_head.in_features
    with torch.device("meta"):
        head = nn.Linear(features, outputs)
    head = head.to_empty(device="cpu")
    if generator is not None:
        resnet.initialise(head, generator)
    return head


def normalisation_keys(model: nn.Module) -> frozenset[str]:
    """Names in `model.state_dict()` that belong to batch norms: what `normalisation: silo` keeps at home."""
    return frozenset(
        f"{prefix}.{key}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key in layer.state_dict()
    )
