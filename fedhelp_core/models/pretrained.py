"""Weights from elsewhere laid into a model: which of its tensors they fit, and which not. Called by local_update and by a silo's check.

A file has the names of the network as its authors know it, or FedHelp's own (`backbone.` and `head.`). Its values are untrusted: copied, never run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhelp_core.errors import WeightsError
from fedhelp_core.models.cut import CutNetwork
from fedhelp_core.weights.header import Weights

_WRAPPED = "module."  # DataParallel's prefix of every name
_NAMED = 5  # tensors that a message names


@dataclass(frozen=True)
class Fitted:
    """What of a file goes into a model."""

    tensors: dict[str, Tensor]
    """By the model's names."""
    drawn: tuple[str, ...]
    """The model's tensors that the file lacks, or has in another shape."""
    unused: tuple[str, ...]
    """The file's tensors that the model has no place for."""

    def __str__(self) -> str:
        """For people."""
        total = len(self.tensors) + len(self.drawn)
        parts = [f"{len(self.tensors)} of {total} tensors from the file"]
        if self.drawn:
            parts.append(f"from the seed: {_listed(self.drawn)}")
        if self.unused:
            parts.append(f"of the file unused: {_listed(self.unused)}")
        return "; ".join(parts)


def fitted(model: nn.Module, found: Weights, *, partial: bool) -> Fitted:
    """What of `found` fits `model`: the same name and shape. The head, and with `partial` anything else, may be left to the seed.

    Raises:
        WeightsError: something of the backbone is missing or of another shape, nothing of it fits, or a value is none that a model can have.
    """
    wanted = model.state_dict()
    named = {_own_name(name.removeprefix(_WRAPPED), model, wanted): (name, array) for name, array in found.items()}
    tensors = {
        name: torch.from_numpy(np.array(named[name][1])).to(tensor.dtype)
        for name, tensor in wanted.items() if name in named and named[name][1].shape == tuple(tensor.shape)}
    _require_possible(tensors)
    drawn = tuple(name for name in wanted if name not in tensors)
    missing = [name for name in drawn if not name.startswith("head.") and not name.endswith(".num_batches_tracked")]
    unused = tuple(original for name, (original, _) in named.items() if name not in tensors)
    if not any(name.startswith("backbone.") for name in tensors) or (missing and not partial):
        other = [name for name in missing if name in named]
        why = f", {len(other)} of them in another shape" if other else ""
        raise WeightsError(
            f"the pretrained file does not fit: {len(missing)} tensors of the backbone are not in it{why} ({_listed(missing)}); it has {len(unused)}"
            f" others ({_listed(unused)}); name the network that it is of, or set partial: true")
    return Fitted(tensors, drawn, unused)


def _own_name(name: str, model: nn.Module, wanted: dict[str, Tensor]) -> str:
    """The name in `model` of what a file calls `name`; the file's where it has none."""
    if name in wanted:
        return name
    if isinstance(model, CutNetwork) and name.startswith(f"{model.head_name}."):
        return f"head.{name.removeprefix(f'{model.head_name}.')}"
    return f"backbone.{name}" if f"backbone.{name}" in wanted else name


def _require_possible(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"the pretrained file's tensor for {name} holds NaN or infinity; take another file")
        if name.endswith((".running_var", ".num_batches_tracked")) and (tensor < 0).any():
            raise WeightsError(f"the pretrained file's tensor for {name} holds a negative number, which no variance or counter is; take another file")


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name[:80] for name in names[:_NAMED]) + more
