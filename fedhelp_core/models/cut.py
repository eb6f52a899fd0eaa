"""Any network cut into a backbone and a head, so that a public head can share the backbone (Eq 2). Called by build.

The head is the layer whose output the logits are: a linear layer or a convolution. Which one that is, is seen in a forward pass on PyTorch's
meta device, which computes shapes alone. Shapes: B batch, C channels, K outputs, S spatial sides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedhelp_core.errors import ConfigError

HEADS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers that may be a head."""


class CutNetwork(nn.Module):
    """A network whose head was taken out: images (B, C, *S) -> logits (B, K), or (B, K, *S) where every pixel is answered."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        layer = network.get_submodule(head)
        network.set_submodule(head, nn.Identity())
        self.backbone = network
        self.head = layer
        self.head_name = head
        """What its authors call the head."""

    def forward(self, images_BCS: Tensor) -> Tensor:
        """Logits of images (B, C, *S) float32."""
        logits: Tensor = self.head(self.backbone(images_BCS))
        return logits


def head_of(network: nn.Module, *, outputs: int, shape: Sequence[int], per_pixel: bool) -> str:
    """The name of `network`'s head: the layer whose output is the answer to images of `shape` (C, *S).

    Raises:
        ConfigError: it has no such layer, cannot take such images, or answers in another form; the message says which, without its name.
    """
    answered: list[tuple[str, Any]] = []  # what each layer that may be the head says, in the order of the pass
    try:
        network = copy.deepcopy(network).to("meta").train()
        for name, layer in network.named_modules():
            if isinstance(layer, HEADS):
                layer.register_forward_hook(lambda _layer, _inputs, output, name=name: answered.append((name, output)))
        answer = network(torch.empty((1, *shape), device="meta"))  # one image: what the last batch of a pass may be
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as e:  # whatever its authors raise
        sides = " x ".join(map(str, shape[1:]))
        raise ConfigError(f"cannot be trained on images of {sides}, one of which may be a batch of its own: {_first_line(e)}") from e
    expected = (1, outputs, *(shape[1:] if per_pixel else ()))
    if not isinstance(answer, Tensor):
        raise ConfigError(f"answers with a {type(answer).__name__}; one tensor of logits {expected} expected (leave deep supervision out)")
    if tuple(answer.shape) != expected:
        raise ConfigError(f"answers with a tensor {tuple(answer.shape)}; {expected} expected of such images and classes")
    head = next((name for name, output in reversed(answered) if output is answer), "")
    if not head:
        raise ConfigError(
            "has no head that can be taken off: its answer is not the output of a linear layer or a convolution, so that no public head (Eq 2) can"
            " share its features")
    return str(head)


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
