"""Models of the registry as modules, and what the algorithm asks of them. Called by the objectives and by local_update."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from fedhelp_core.config.model import ModelConfig, model_of
from fedhelp_core.errors import ConfigError
from fedhelp_core.models.cut import HEADS, CutNetwork, head_of, like
from fedhelp_core.models.initialisation import initialise
from fedhelp_core.models.resnet import Classifier
from fedhelp_core.registry.models import Answer, CifarResNet, UNet, answers_per_pixel, model_called
from fedhelp_core.registry.networks import MonaiNetwork


def build_model(
    model: ModelConfig | str, *, outputs: int, in_channels: int = 3, answer: Answer = "classes", dimensions: int = 2, side: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """`model`, float32 on the CPU; initialised from `generator`, or left as it comes for loading where it is None.

    It has a `backbone` and a `head`, of which it is one after the other. `side`: of the images that it is trained on, in pixels or voxels.

    Raises:
        ConfigError: there is no such model, it answers in another way, or cannot be trained on such images.
    """
    model = model_of(model)
    network = None if model.network is None else model_called(model.network, answer, dimensions)
    if isinstance(network, CifarResNet | UNet):
        return _own(network, outputs, in_channels, generator)
    sides, per_pixel = (side,) * dimensions, answers_per_pixel(answer)
    try:
        make = partial(_whole, network, model, in_channels, sides)
        whole = make(outputs, generator)
        key = (str(model), outputs, in_channels, sides, per_pixel)
        if key not in _heads:
            _heads[key] = head_of(whole, outputs=outputs, shape=(in_channels, *sides), per_pixel=per_pixel, make=make)
        return CutNetwork(whole, _heads[key], make)
    except ConfigError as e:
        said = f"network {model} {e}"
        raise ConfigError(said, public=said) from e  # of the hub's own federation.yaml, whatever the hospital


_heads: dict[tuple[object, ...], str] = {}  # of each network that this process has cut: its head's name, which no weights change


def _own(network: CifarResNet | UNet, outputs: int, in_channels: int, generator: torch.Generator | None) -> nn.Module:
    with torch.device("meta"):
        model = _module(network, outputs, in_channels)
    model = model.to_empty(device="cpu")
    if generator is not None:
        initialise(model, generator)
    return model


def _module(network: CifarResNet | UNet, outputs: int, in_channels: int) -> nn.Module:
    if isinstance(network, CifarResNet):
        return Classifier(network.depth, outputs, in_channels)
    from fedhelp_core.models.unet import Segmenter  # with MONAI, which classification never waits for

    return Segmenter(network.dimensions, network.channels, network.residual_units, outputs, in_channels)


def _whole(
    network: MonaiNetwork | None, model: ModelConfig, in_channels: int, sides: tuple[int, ...], outputs: int, generator: torch.Generator | None,
) -> nn.Module:
    """Not cut yet: MONAI's, or where there is no such network the plugin's."""
    if network is None:
        from fedhelp_core.models.plugins import plugged

        return plugged(model, outputs=outputs, channels=in_channels, sides=sides, generator=generator)
    from fedhelp_core.models.monai_network import monai_network  # with MONAI, as above

    return monai_network(network, model.arguments, outputs=outputs, channels=in_channels, sides=sides, generator=generator)


def build_public_head(model: nn.Module, *, outputs: int, generator: torch.Generator | None = None) -> nn.Module:
    """g of Eq 2: a head on `model`'s features with `outputs` = C_pub, of the kind of the model's own head and initialised like it."""
    if isinstance(model, CutNetwork) and not isinstance(model.head, HEADS):
        return model.another_head(outputs, generator)
    with torch.device("meta"):
        head = like(model.head, outputs)  # type: ignore[arg-type]
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
