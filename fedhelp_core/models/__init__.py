"""The model registry: names that `proxy_model` and `large_model` may take, and how each is built.

Called by the tasks. A model is an `nn.Module` with a `backbone` (images -> features) and a `head` (features -> logits; a linear
layer, or a 1x1 convolution where every pixel is answered), so that a public head can share the backbone (Eq 2).
Register another with `register("name", factory)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fedhelp_core.errors import ConfigError
from fedhelp_core.models import resnet
from fedhelp_core.models.initialisation import initialise

Factory = Callable[[int, int], nn.Module]
Form = Literal["classes", "mask"]


@dataclass(frozen=True)
class _Entry:
    factory: Factory
    form: Form
    dimensions: int


_REGISTRY: dict[str, _Entry] = {}


def register(name: str, factory: Factory, *, form: Form = "classes", dimensions: int = 2) -> None:
    """Make `name` available; `factory(outputs, in_channels)` returns the module, its parameters in any state."""
    _REGISTRY[name] = _Entry(factory, form, dimensions)


def _cifar_resnet(depth: int) -> Factory:
    return lambda outputs, in_channels: resnet.Classifier(depth, outputs, in_channels)


def _unet(dimensions: int, channels: Sequence[int], residual_units: int) -> Factory:
    def build(outputs: int, in_channels: int) -> nn.Module:
        from fedhelp_core.models.unet import Segmenter  # with MONAI, which classification never waits for

        return Segmenter(dimensions, channels, residual_units, outputs, in_channels)

    return build


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", _cifar_resnet(_depth))
for _dimensions in (2, 3):
    register(f"unet{_dimensions}d-tiny", _unet(_dimensions, (8, 16, 32), 0), form="mask", dimensions=_dimensions)
    register(f"unet{_dimensions}d", _unet(_dimensions, (16, 32, 64, 128), 0), form="mask", dimensions=_dimensions)
    register(f"unet{_dimensions}d-large", _unet(_dimensions, (16, 32, 64, 128, 256), 2), form="mask", dimensions=_dimensions)


def known_models(form: Form = "classes", dimensions: int = 2) -> tuple[str, ...]:
    """Names of the models that answer in `form` to images of `dimensions`, in order of registration."""
    return tuple(name for name, entry in _REGISTRY.items() if (entry.form, entry.dimensions) == (form, dimensions))


def build_model(
    name: str, *, outputs: int, in_channels: int = 3, form: Form = "classes", dimensions: int = 2, generator: torch.Generator | None = None,
) -> nn.Module:
    """The model `name`, float32 on the CPU; initialised from `generator`, or left uninitialised for loading where it is None.

    Raises:
        ConfigError: `name` is not in the registry, or answers in another form.
    """
    if name not in known_models(form, dimensions):
        fitting = ", ".join(known_models(form, dimensions))
        raise ConfigError(f"model {name!r} is not registered for {form} of {dimensions}D images; known models: {fitting};"
                          " correct algorithm.proxy_model or algorithm.large_model")
    with torch.device("meta"):
        model = _REGISTRY[name].factory(outputs, in_channels)
    model = model.to_empty(device="cpu")
    if generator is not None:
        initialise(model, generator)
    return model


def build_public_head(model: nn.Module, *, outputs: int, generator: torch.Generator | None = None) -> nn.Module:
    """g of Eq 2: a head on `model`'s features with `outputs` = C_pub, of the kind of the model's own head and initialised like it."""
    own_head = model.head
    head: nn.Module
    with torch.device("meta"):
        if isinstance(own_head, nn.Linear):
            head = nn.Linear(own_head.in_features, outputs)
        elif isinstance(own_head, nn.Conv2d | nn.Conv3d):
            head = type(own_head)(own_head.in_channels, outputs, 1)
        else:
            raise ConfigError("a proxy model needs a `head` that is linear or a 1x1 convolution for the public head to be made like it")
    head = head.to_empty(device="cpu")
    if generator is not None:
        initialise(head, generator)
    return head


def normalisation_keys(model: nn.Module) -> frozenset[str]:
    """Names in `model.state_dict()` that belong to batch norms: what `normalisation: silo` keeps at home."""
    return frozenset(
        f"{prefix}.{key}"
        for prefix, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for key in layer.state_dict()
    )
