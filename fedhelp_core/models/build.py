"""Models of the registry as modules, and what the algorithm asks of them. Called by the objectives and by local_update."""

from __future__ import annotations

import torch
from torch import nn

from fedhelp_core.errors import ConfigError
from fedhelp_core.models.initialisation import initialise
from fedhelp_core.models.resnet import Classifier
from fedhelp_core.registry.models import Answer, CifarResNet, Network, model_called


def build_model(
    name: str, *, outputs: int, in_channels: int = 3, answer: Answer = "classes", dimensions: int = 2, generator: torch.Generator | None = None,
) -> nn.Module:
    """The model `name`, float32 on the CPU; initialised from `generator`, or left uninitialised for loading where it is None.

    Raises:
        ConfigError: `name` is not in the registry, or answers in another way.
    """
    network = model_called(name, answer, dimensions)
    with torch.device("meta"):
        model = _module(network, outputs, in_channels)
    model = model.to_empty(device="cpu")
    if generator is not None:
        initialise(model, generator)
    return model


def _module(network: Network, outputs: int, in_channels: int) -> nn.Module:
    if isinstance(network, CifarResNet):
        return Classifier(network.depth, outputs, in_channels)
    from fedhelp_core.models.unet import Segmenter  # with MONAI, which classification never waits for

    return Segmenter(network.dimensions, network.channels, network.residual_units, outputs, in_channels)


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
