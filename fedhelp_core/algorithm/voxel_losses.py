"""Eq 6 of FedHelp (arXiv 2412.19654; docs/algorithm.md): the terms of Eq 1-4 in segmentation. Called by objectives/segmentation.py.

Shapes: B batch, then channels, then the spatial sides: (B, K, H, W) or (B, K, D, H, W), of which names show channels alone; K foreground
classes or regions. A class's logit is that against the background, whose own is 0, so probabilities of {background, foregrounds} are
softmax of (0, z) / T: of one foreground sigmoid(z / T). Regions overlap, and each has a sigmoid of its own.
Masks of classes are (B, 1) with 0 for background and the class's number; of regions (B, K) with 0, 1 or NOT_LABELLED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from fedhelp_core.algorithm.losses import LossTerms, divergence_each, softened_each
from fedhelp_core.lean_monai import DiceLoss
from fedhelp_core.registry.tasks import NOT_LABELLED

_DICE = DiceLoss(sigmoid=True)
_DICE_OF_PROBABILITIES = DiceLoss()
_DICE_EACH = DiceLoss(sigmoid=True, reduction="none")


def supervised_loss(logits_B1: Tensor, masks_B1: Tensor) -> Tensor:
    """Eq 6: BCE (mean over voxels) + soft Dice (mean over images) in the place of CE. Masks are 0 or 1, of any dtype."""
    target_B1 = masks_B1.to(logits_B1.dtype)
    dice: Tensor = _DICE(logits_B1, target_B1)
    return functional.binary_cross_entropy_with_logits(logits_B1, target_B1) + dice


MASK = LossTerms(supervised=supervised_loss, softened=softened_each, divergence=divergence_each)
"""Of one foreground."""


def classes_loss(logits_BK: Tensor, masks_B1: Tensor) -> Tensor:
    """Eq 6 of several classes: CE over background and classes (mean over voxels) + soft Dice (mean over classes and images)."""
    target_B = masks_B1[:, 0].long()
    logits_BC = _with_background(logits_BK)
    foreground_BK = functional.one_hot(target_B, logits_BC.shape[1]).movedim(-1, 1)[:, 1:].to(logits_BK.dtype)
    dice: Tensor = _DICE_OF_PROBABILITIES(logits_BC.softmax(dim=1)[:, 1:], foreground_BK)
    return functional.cross_entropy(logits_BC, target_B) + dice


def softened_classes(fixed_logits_BK: Tensor, temperature: float) -> Tensor:
    """The classes' probabilities at temperature T of the model that is fixed in this step, background left out: no gradient flows."""
    return foreground_probabilities(fixed_logits_BK.detach() / temperature)


def divergence_of_classes(target_BK: Tensor, logits_BK: Tensor, temperature: float) -> Tensor:
    """Eq 6: T² KL over background and classes of each voxel, mean over voxels and batch. `target_BK`: the classes' probabilities."""
    foreground_BK = target_BK.detach()
    target_BC = torch.cat(((1 - foreground_BK.sum(dim=1, keepdim=True)).clamp(min=0), foreground_BK), dim=1)
    log_probabilities_BC = functional.log_softmax(_with_background(logits_BK / temperature), dim=1)
    voxels = target_BC.numel() / target_BC.shape[1]
    return functional.kl_div(log_probabilities_BC, target_BC, reduction="sum") / voxels * temperature**2


CLASSES_OF_VOXELS = LossTerms(supervised=classes_loss, softened=softened_classes, divergence=divergence_of_classes)
"""Of several foregrounds that exclude each other."""


def regions_loss(logits_BK: Tensor, masks_BK: Tensor) -> Tensor:
    """Eq 6 of regions that overlap: BCE of each (mean over what is labelled) + soft Dice (mean over the labelled regions of the images)."""
    labelled_BK = masks_BK != NOT_LABELLED
    target_BK = (masks_BK == 1).to(logits_BK.dtype)
    if bool(labelled_BK.all()):
        return supervised_loss(logits_BK, target_BK)
    each_BK = functional.binary_cross_entropy_with_logits(logits_BK, target_BK, reduction="none")
    has_labels_BK = labelled_BK.flatten(2).all(dim=2)
    dice_BK: Tensor = _DICE_EACH(logits_BK, target_BK).flatten(1)
    return (each_BK * labelled_BK).sum() / labelled_BK.sum().clamp(min=1) + (dice_BK * has_labels_BK).sum() / has_labels_BK.sum().clamp(min=1)


REGIONS = LossTerms(supervised=regions_loss, softened=softened_each, divergence=divergence_each)


def foreground_probabilities(logits_BK: Tensor) -> Tensor:
    """Of classes that exclude each other: softmax over background and classes, background left out."""
    if logits_BK.shape[1] == 1:
        return logits_BK.sigmoid()
    return _with_background(logits_BK).softmax(dim=1)[:, 1:]


def with_labelled_classes(labelled: Sequence[bool]) -> LossTerms:
    """The terms of a silo whose masks show some of the classes alone: what it does not label looks like background there.

    Supervision is of the labelled classes against all the rest, whose logits are taken together, as is what its large model teaches in Eq 3.
    """
    terms = CLASSES_OF_VOXELS if len(labelled) > 1 else MASK
    if all(labelled):
        return terms
    own, others = ([number for number, is_labelled in enumerate(labelled) if is_labelled is wanted] for wanted in (True, False))
    of_own = CLASSES_OF_VOXELS if len(own) > 1 else MASK
    place_in_own = torch.zeros(len(labelled) + 1, dtype=torch.long)
    place_in_own[[number + 1 for number in own]] = torch.arange(1, len(own) + 1)

    def against_the_rest(logits_BK: Tensor) -> Tensor:
        return logits_BK[:, own] - _with_background(logits_BK[:, others]).logsumexp(dim=1, keepdim=True)

    def supervised(logits_BK: Tensor, masks_B1: Tensor) -> Tensor:
        return of_own.supervised(against_the_rest(logits_BK), place_in_own.to(masks_B1.device)[masks_B1.long()])

    def taught(target_BK: Tensor, logits_BK: Tensor, temperature: float) -> Tensor:
        return of_own.divergence(target_BK[:, own], against_the_rest(logits_BK / temperature), 1.0) * temperature**2

    return replace(terms, supervised=supervised, taught=taught)


def _with_background(logits_BK: Tensor) -> Tensor:
    """(B, K + 1): the background's logit of 0 before the classes'."""
    return torch.cat((torch.zeros_like(logits_BK[:, :1]), logits_BK), dim=1)
