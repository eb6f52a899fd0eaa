"""The model registry: names that `proxy_model` and `large_model` may take. Data only, no PyTorch; models/build.py makes networks of it.

Read by the config (which names there are, which images fit) and by build.py. A network is an `nn.Module` with a `backbone`
(images -> features) and a `head` (features -> logits; a linear layer, or a 1x1 convolution where every pixel is answered), so that a
public head can share the backbone (Eq 2). A new size of a known network is one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedhelp_core.errors import ConfigError
from fedhelp_core.printable import nearest
from fedhelp_core.registry.networks import MonaiNetwork, networks

Answer = Literal["classes", "mask"]
"""What a network answers about: an image as a whole, or every pixel or voxel of it."""


@dataclass(frozen=True, kw_only=True)
class CifarResNet:
    """A ResNet for small images (He et al. 2016, arXiv 1512.03385, section 4.2); answers with class logits."""

    depth: int
    """6n + 2 layers."""
    answer: Answer = "classes"
    dimensions: int = 2
    sides_multiple_of: int = 1
    halvings: int = 2
    """How often an image's side is halved (rounded up) down to the smallest map."""


@dataclass(frozen=True, kw_only=True)
class UNet:
    """A U-Net; answers with a logit of every pixel or voxel."""

    dimensions: int
    """Of its images: 2 or 3."""
    channels: tuple[int, ...]
    """Of each level, from the full resolution down."""
    residual_units: int = 0
    """Convolutions of a level that a shortcut bridges; 0: plain levels."""
    answer: Answer = "mask"

    @property
    def halvings(self) -> int:
        """How often an image's side is halved down to the smallest map."""
        return len(self.channels) - 1

    @property
    def sides_multiple_of(self) -> int:
        """What every side of an image must be a multiple of: it is halved level by level, and doubled again on the way up."""
        return int(2 ** self.halvings)


Network = CifarResNet | UNet | MonaiNetwork


def smallest_trained_side(network: Network) -> int:
    """The smallest side of an image that `network` can be trained on, in pixels or voxels.

    The smallest map then has more than one value per channel. A batch norm can therefore normalise a batch of one image, which
    the last batch of a pass may be.
    """
    least = int(2 ** network.halvings) + 1
    return -(-least // network.sides_multiple_of) * network.sides_multiple_of

MODELS: Mapping[str, CifarResNet | UNet] = {
    **{f"resnet{depth}": CifarResNet(depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"unet{dimensions}d{size}": UNet(dimensions=dimensions, channels=channels, residual_units=units) for dimensions in (2, 3)
       for size, channels, units in (("-tiny", (8, 16, 32), 0), ("", (16, 32, 64, 128), 0), ("-large", (16, 32, 64, 128, 256), 2))},
}


def known_models(answer: Answer = "classes", dimensions: int = 2) -> tuple[str, ...]:
    """Names of the models that answer with `answer` to images of `dimensions`."""
    return tuple(name for name, network in MODELS.items() if (network.answer, network.dimensions) == (answer, dimensions))


def model_called(name: str, answer: Answer, dimensions: int) -> Network:
    """The model `name`: one of the registry, or of MONAI's networks.

    Raises:
        ConfigError: there is none, or it answers in another way.
    """
    fitting = known_models(answer, dimensions)
    theirs = [one.name for one in networks().values() if dimensions in one.dimensions and one.per_pixel == answers_per_pixel(answer)]
    if name in fitting:
        return MODELS[name]
    if name in theirs:
        return networks()[name]
    near = nearest(name, [*fitting, *theirs], cutoff=0.6)
    hint = f"; did you mean {near!r}?" if near and name not in (*MODELS, *networks()) else ""
    raise ConfigError(
        f"a model for {answer} of {dimensions}D images expected ({', '.join(fitting)}, or one of MONAI's: docs/models.md),"
        f" got {name!r}{hint}")


def answers_per_pixel(answer: Answer) -> bool:
    """Whether a model answers every pixel or voxel, and not the image as a whole."""
    return answer == "mask"
