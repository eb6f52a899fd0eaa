"""Any network cut into a backbone and a head, so that a public head can share the backbone (Eq 2). Called by build.

The head is the layer whose output the logits are: a linear layer or a convolution. Where a network ends in a sum or the like, it is the smallest
of its modules that ends with the logits and holds every tensor whose shape depends on how many there are. Which one that is, is seen in a forward
pass on PyTorch's meta device, which computes shapes alone. Shapes: B batch, C channels, K outputs, S spatial sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedhelp_core.errors import ConfigError

MakeNetwork = Callable[[int, torch.Generator | None], nn.Module]
"""The whole network with so many outputs, drawn from a generator."""
HEADS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers that may be a head."""


class CutNetwork(nn.Module):
    """A network whose head was taken out: images (B, C, *S) -> logits (B, K), or (B, K, *S) where every pixel is answered.

    A layer that its authors hold under two names is in its weights once, by the first.
    """

    def __init__(self, network: nn.Module, head: str, make: MakeNetwork) -> None:
        super().__init__()
        layer = network.get_submodule(head)
        network.set_submodule(head, nn.Identity())
        self.backbone = network
        self.head = layer
        self.head_name = head
        """What its authors call the head."""
        self._make = make
        self._aliases = _aliases(self)
        if self._aliases:
            self.register_state_dict_post_hook(_without_aliases)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_with_aliases)  # type: ignore[no-untyped-call]

    def another_head(self, outputs: int, generator: torch.Generator | None) -> nn.Module:
        """One with so many outputs, as its authors make it."""
        return self._make(outputs, generator).get_submodule(self.head_name)

    def forward(self, images_BCS: Tensor) -> Tensor:
        """Logits of images (B, C, *S) float32."""
        logits: Tensor = self.head(self.backbone(images_BCS))
        return logits


def _aliases(network: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same tensor, of all that are held under two."""
    first, found = dict[int, str](), dict[str, str]()
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if first.setdefault(id(tensor), name) != name:
            found[name] = first[id(tensor)]
    return found


def _without_aliases(network: CutNetwork, tensors: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in network._aliases:
        del tensors[prefix + name]


def _with_aliases(network: CutNetwork, tensors: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, first in network._aliases.items():
        if prefix + first in tensors:
            tensors[prefix + name] = tensors[prefix + first]


def head_of(network: nn.Module, *, outputs: int, shape: Sequence[int], per_pixel: bool, make: MakeNetwork) -> str:
    """The name of `network`'s head: the layer, or smallest module, whose output is the answer to images of `shape` (C, *S).

    Raises:
        ConfigError: it has no such layer, cannot take such images, or answers in another form; the message says which, without its name.
    """
    answered: list[tuple[str, tuple[Any, ...], Any]] = []  # what each module is given and says, in the order in which they end
    try:
        network = copy.deepcopy(network).to("meta").train()
        for name, layer in network.named_modules():
            layer.register_forward_hook(lambda _layer, inputs, output, name=name: answered.append((name, inputs, output)))
        answer = network(torch.empty((1, *shape), device="meta"))  # one image: what the last batch of a pass may be
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as e:  # whatever its authors raise
        sides = " x ".join(map(str, shape[1:]))
        raise ConfigError(f"cannot be trained on images of {sides}, one of which may be a batch of its own: {_first_line(e)}") from e
    expected = (1, outputs, *(shape[1:] if per_pixel else ()))
    if not isinstance(answer, Tensor):
        raise ConfigError(f"answers with a {type(answer).__name__}; one tensor of logits {expected} expected (leave deep supervision out)")
    if tuple(answer.shape) != expected:
        raise ConfigError(f"answers with a tensor {tuple(answer.shape)}; {expected} expected of such images and classes")
    ends = [name for name, inputs, output in answered if output is answer and len(inputs) == 1]
    layers = dict(network.named_modules())
    head = next((name for name in ends if isinstance(layers[name], HEADS)), None) or _smallest_module(ends, network, outputs, make)
    if not head:
        raise ConfigError(
            "has no head that can be taken off: its answer is not the output of one layer, nor of a module that alone depends on how many classes"
            " there are, so that no public head (Eq 2) can share its features")
    return head


def _smallest_module(ends: Sequence[str], network: nn.Module, outputs: int, make: MakeNetwork) -> str:
    """The first of `ends` that holds every tensor whose shape another number of outputs changes; '' of none but the network itself."""
    with torch.device("meta"):
        other = make(outputs + 1, None).state_dict()
    changed = [name for name, tensor in network.state_dict().items() if name not in other or other[name].shape != tensor.shape]
    return next((name for name in ends if name and all(one.startswith(f"{name}.") for one in changed)), "")


def like(head: nn.Module, outputs: int) -> nn.Module:
    """A layer of the kind of `head` with `outputs` outputs."""
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, outputs)
    if isinstance(head, nn.modules.conv._ConvNd) and head.groups == 1:
        kind: Any = type(head)
        more = {"output_padding": head.output_padding} if head.transposed else {}
        layer: nn.Module = kind(
            head.in_channels, outputs, head.kernel_size, stride=head.stride, padding=head.padding, dilation=head.dilation, **more)
        return layer
    raise ConfigError("a proxy model needs a `head` that is a linear layer or a convolution for the public head to be made like it")


def require_rows(network: nn.Module, called: str, outputs: int) -> None:
    """Nothing where shapes alone tell what each output has to itself in the head, which the hub averages by itself (algorithm/server.Rows).

    Raises:
        ConfigError: a transposed kernel has as many inputs as outputs.
    """
    head = network.head
    if isinstance(head, nn.modules.conv._ConvNd) and head.transposed and head.in_channels == outputs:
        said = (f"network {called}: its head is a transposed convolution of as many inputs as outputs ({outputs}), so that the hub cannot tell"
                " the rows of findings or regions that a hospital does not label; choose other channels, or leave `labelled` out")
        raise ConfigError(said, public=said)


def _first_line(error: Exception) -> str:
    """What went wrong, in at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
