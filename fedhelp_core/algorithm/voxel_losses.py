"""Eq 6 of FedHelp (arXiv 2412.19654; docs/algorithm.md): the terms of Eq 1-4 in segmentation. Called by objectives/segmentation.py.

Shapes: B batch, then one channel, then the spatial sides: logits and masks (B, 1, H, W) or (B, 1, D, H, W). A logit is that of
foreground against background, so sigmoid(z / T) = softmax over {background, foreground} of (0, z) / T.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedhelp_core.algorithm.losses import LossTerms
from fedhelp_core.lean_monai import DiceLoss

_DICE = DiceLoss(sigmoid=True)


def supervised_loss(logits_B1: Tensor, masks_B1: Tensor) -> Tensor:
    """Eq 6: BCE (mean over voxels) + soft Dice (mean over images) in the place of CE. Masks are 0 or 1, of any dtype."""
    target_B1 = masks_B1.to(logits_B1.dtype)
    dice: Tensor = _DICE(logits_B1, target_B1)
    return functional.binary_cross_entropy_with_logits(logits_B1, target_B1) + dice


def softened(fixed_logits_B1: Tensor, temperature: float) -> Tensor:
    """Foreground probability at temperature T of the model that is fixed in this step: no gradient flows."""
    return torch.sigmoid(fixed_logits_B1.detach() / temperature)


def divergence(target_B1: Tensor, logits_B1: Tensor, temperature: float) -> Tensor:
    """Eq 6: T² KL over {background, foreground} of each voxel, mean over voxels and batch. `target_B1`: foreground probability."""
    target_B1 = target_B1.detach()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits_B1 / temperature, target_B1)
    entropy = -(torch.xlogy(target_B1, target_B1) + torch.xlogy(1 - target_B1, 1 - target_B1)).mean()
    return (cross_entropy - entropy) * temperature**2


MASK = LossTerms(supervised=supervised_loss, softened=softened, divergence=divergence)
