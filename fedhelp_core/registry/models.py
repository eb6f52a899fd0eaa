"""The model registry: names that `proxy_model` and `large_model` may take, and how each is built. No torch before one is built.

Called by config.py (which names there are) and by build.py. A model is an `nn.Module` with a `backbone` (images -> features) and a
`head` (features -> logits; a linear layer, or a 1x1 convolution where every pixel is answered), so that a public head can share
the backbone (Eq 2). Register another with `register("name", factory)`, in the hub's image too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedhelp_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[[int, int], "nn.Module"]
"""(outputs, in_channels) -> the module, its parameters in any state."""
Form = Literal["classes", "mask"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model."""

    factory: Factory
    form: Form
    """What it answers: class logits of an image, or a logit of every pixel or voxel."""
    dimensions: int
    """Of its images: 2 or 3."""
    sides_multiple_of: int
    """What every side of an image must be a multiple of."""


_REGISTRY: dict[str, Entry] = {}


def register(name: str, factory: Factory, *, form: Form = "classes", dimensions: int = 2, sides_multiple_of: int = 1) -> None:
    """Make `name` available."""
    _REGISTRY[name] = Entry(factory=factory, form=form, dimensions=dimensions, sides_multiple_of=sides_multiple_of)


def known_models(form: Form = "classes", dimensions: int = 2) -> tuple[str, ...]:
    """Names of the models that answer in `form` to images of `dimensions`, in order of registration."""
    return tuple(name for name, known in _REGISTRY.items() if (known.form, known.dimensions) == (form, dimensions))


def entry(name: str, form: Form, dimensions: int) -> Entry:
    """The model `name`.

    Raises:
        ConfigError: it is not in the registry, or answers in another form.
    """
    fitting = known_models(form, dimensions)
    if name not in fitting:
        raise ConfigError(f"a model for {form} of {dimensions}D images expected ({', '.join(fitting)}), got {name!r}")
    return _REGISTRY[name]


def _cifar_resnet(depth: int) -> Factory:
    def build(outputs: int, in_channels: int) -> nn.Module:
        from fedhelp_core.models.resnet import Classifier

        return Classifier(depth, outputs, in_channels)

    return build


def _unet(dimensions: int, channels: Sequence[int], residual_units: int) -> Factory:
    def build(outputs: int, in_channels: int) -> nn.Module:
        from fedhelp_core.models.unet import Segmenter  # with MONAI, which classification never waits for

        return Segmenter(dimensions, channels, residual_units, outputs, in_channels)

    return build


def _register_unet(name: str, dimensions: int, channels: Sequence[int], residual_units: int = 0) -> None:
    halvings = len(channels) - 1  # level by level on the way down, doubled again on the way up
    register(name, _unet(dimensions, channels, residual_units), form="mask", dimensions=dimensions, sides_multiple_of=2**halvings)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}", _cifar_resnet(_depth))
for _dimensions in (2, 3):
    _register_unet(f"unet{_dimensions}d-tiny", _dimensions, (8, 16, 32))
    _register_unet(f"unet{_dimensions}d", _dimensions, (16, 32, 64, 128))
    _register_unet(f"unet{_dimensions}d-large", _dimensions, (16, 32, 64, 128, 256), residual_units=2)
