"""How large a model is, before anything is trained: parameters, bytes that travel, arithmetic and memory. Called by a silo's check.

From one pass on PyTorch's meta device, which computes shapes alone, so that it takes no memory and no time to speak of.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fedhelp_core.errors import ConfigError

_COPIES = 4  # of each parameter while it is trained: itself, its gradient, Adam's two moments


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of one model, trained on batches of one size."""

    parameters: int
    travelling_bytes: int
    """Of its weights as a file without a header: what goes up, and comes down, in a round; of a large model, what its state holds."""
    flops: int
    """Of one image's forward pass, a multiplication and an addition being two; a step takes about three times as many."""
    training_bytes: int
    """About what a training step holds at once: parameters, gradients, Adam's moments, and what the backward pass needs of the forward pass."""
    batch_norms: int
    """Layers that `normalisation: silo` keeps at home."""


def size_of(model: nn.Module, *, shape: Sequence[int], batch: int, at_home: Container[str] = ()) -> Size:
    """Of `model`, trained on batches of `batch` images of `shape` (C, *S); `at_home`: weights that do not travel."""
    empty = copy.deepcopy(model).to("meta").train()
    parameters = sum(one.numel() for one in empty.parameters())
    weights = {name: one.numel() * one.element_size() for name, one in empty.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        kept = _kept_for_backward(empty, torch.empty((batch, *shape), device="meta"))
    return Size(
        parameters=parameters, flops=counter.get_total_flops() // batch,
        travelling_bytes=sum(size for name, size in weights.items() if name not in at_home),
        training_bytes=_COPIES * sum(weights.values()) + kept,
        batch_norms=sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in empty.modules()))


def require_answer(model: nn.Module, shape: Sequence[int]) -> None:
    """Nothing where `model` answers images of `shape` (C, *S) after training.

    Raises:
        ConfigError: it does not.
    """
    try:
        with torch.no_grad():
            copy.deepcopy(model).to("meta").eval()(torch.empty((1, *shape), device="meta"))
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as e:  # whatever its authors raise
        sides = " x ".join(map(str, shape[1:]))
        said = f"a model that is trained on patches cannot answer windows of {sides} (task.volume.window_size): {str(e).splitlines()[0][:200]}"
        raise ConfigError(said, public=said) from e


def _kept_for_backward(empty: nn.Module, images_BCS: Tensor) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass, each memory once; parameters are none of them."""
    own = {id(one.untyped_storage()): one.untyped_storage() for one in empty.parameters()}
    known = {storage._cdata for storage in own.values()}
    kept: list[torch.UntypedStorage] = []  # alive, so that none has another's place

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(storage)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        empty(images_BCS)
    return sum(storage.nbytes() for storage in kept)
